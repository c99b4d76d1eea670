// y = x W^T + b + scaling * s B^T; with a scale z = x W^T + scaling * s B^T and y = scale * z + b.
//
//   x [M, K], weight [N, K] (any strides, or quantised), bias [N] or none, s [M, r], lora_B [N, r], scale [N] or none
//   -> y [M, N] and z [M, N] in the dtype of x; z is [0, N] if not needed
//
// product() computes all terms.
#include <tuple>

#include "cpu/product/product.h"
#include "fits.h"

namespace pypeft {
namespace {
Tensor as_floats(const Tensor& vector) { return torch::stable::contiguous(as_float(vector)); }

std::tuple<Tensor, Tensor> lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Tensor& s, const Tensor& lora_B, double scaling,
                                       const std::optional<Tensor>& scale, bool need_z,
                                       const std::optional<std::string>& format,
                                       const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_linear", "x", x, "bias", bias, "s", s, "lora_B", lora_B, "scale", scale);
  fits(is_matrix(x) && is_matrix(s) && is_matrix(lora_B) && is_activation(x));
  const int64_t M = x.size(0), N = lora_B.size(0), K = x.size(1);
  const Frozen w = frozen("lora_linear", weight, format, scales, N, K);
  fits(w.N == N && w.K == K && (!w.is_dense() || like(weight, x)) && is_adapter(lora_B, x) && is_adapter(s, x));
  fits(s.size(0) == M && s.size(1) == lora_B.size(1) && s.size(1) > 0 && (scale || !need_z));
  if (bias) fits(bias->dim() == 1 && bias->size(0) == N && like(*bias, x));
  if (scale) fits(scale->dim() == 1 && scale->size(0) == N && is_adapter(*scale, x));
  const Right across{w, true};
  const Tensor up = transposed(lora_B);
  const Tensor z = new_empty(x, {need_z ? M : 0, N});
  const LowRank update{s, up, scaling};
  if (!scale) return {product(x, across, &update, {bias, {}}), z};
  const Tensor factors = as_floats(*scale);
  std::optional<Tensor> shift;
  if (bias) shift = as_floats(*bias);
  Epilogue epilogue;
  epilogue.scale.factors = static_cast<const float*>(factors.const_data_ptr());
  if (shift) epilogue.scale.shift = static_cast<const float*>(shift->const_data_ptr());
  if (need_z) epilogue.scale.z = z.mutable_data_ptr();
  return {product(x, across, &update, epilogue), z};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_linear_cpu", TORCH_BOX(&pypeft::lora_linear)); }
