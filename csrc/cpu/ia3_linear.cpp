// y = (x W^T + b) * l and z = x W^T + b; with feedforward y = (x * l) W^T + b.
//
//   x [M, K], weight [N, K] (any strides, or quantised), bias [N] or none, ia3_l [N] or with feedforward [K]
//   -> y [M, N] and z [M, N] in the dtype of x; z is [0, N] if not needed and with feedforward
//
// The epilogue of the product multiplies by l. With feedforward one pass over x multiplies by l before the product.
#include <tuple>

#include "cpu/product/product.h"
#include "cpu/product/scale_columns.h"
#include "fits.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> ia3_linear(const Tensor& given, const Tensor& weight, const std::optional<Tensor>& bias,
                                      const Tensor& ia3_l, bool feedforward, bool need_z,
                                      const std::optional<std::string>& format,
                                      const std::optional<std::vector<Tensor>>& scales) {
  check_storages("ia3_linear", "x", given, "bias", bias, "ia3_l", ia3_l);
  fits(is_matrix(given) && ia3_l.dim() == 1);
  const int64_t M = given.size(0), K = given.size(1), sides = feedforward ? -1 : ia3_l.size(0);
  const Frozen w = frozen("ia3_linear", weight, format, scales, sides, K);
  const int64_t N = w.N;
  fits(w.K == K && is_activation(given) && is_adapter(ia3_l, given) && (!w.is_dense() || like(weight, given)));
  fits(ia3_l.size(0) == (feedforward ? K : N));
  if (bias) fits(bias->dim() == 1 && bias->size(0) == N && like(*bias, given));
  const Right across{w, true};
  if (feedforward) {
    const Tensor none = new_empty(given, {0, N});
    const Tensor x = with_dense_rows(given);
    Tensor scaled = new_empty(x, {M, x.size(1)});
    scale_columns(x, ia3_l, &scaled, nullptr, nullptr);
    return {product(scaled, across, nullptr, {bias, {}}), none};
  }
  const Tensor factors = torch::stable::contiguous(as_float(ia3_l)), z = new_empty(given, {need_z ? M : 0, N});
  Epilogue epilogue{bias, {}};
  epilogue.scale.factors = static_cast<const float*>(factors.const_data_ptr());
  if (need_z) epilogue.scale.z = z.mutable_data_ptr();
  return {product(given, across, nullptr, epilogue), z};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("ia3_linear_cpu", TORCH_BOX(&pypeft::ia3_linear)); }
