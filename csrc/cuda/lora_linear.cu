// y = x W^T + b + scaling s B^T; with a scale z = x W^T + scaling s B^T and y = z o scale + b. One launch; gemm.cuh,
// decode.cu and decode_codes.cu have the kernels and their plans.
//
//   x [M, K], weight [N, K] (any strides, or quantised), bias [N] or none, s [M, r], lora_B [N, r], scale [N] or none
//   -> y [M, N] and z [M, N] in the dtype of x; z is [0, N] if not needed
#include <tuple>

#include "cuda/product/weight.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Tensor& s, const Tensor& lora_B, double scaling,
                                       const std::optional<Tensor>& scale, bool need_z, bool allow_tf32,
                                       const std::optional<std::string>& format,
                                       const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_linear", "x", x, "bias", bias, "s", s, "lora_B", lora_B, "scale", scale);
  const OnDevice on(x);
  Weight W("lora_linear", weight, format, scales, lora_B.size(0), x.size(1));
  const int64_t M = x.size(0), N = W.N();
  Tensor y = torch::stable::new_empty(x, {M, N});
  Tensor z = torch::stable::new_empty(x, {need_z ? M : 0, N});
  if (M == 0 || N == 0) return {y, z};
  ProductArgs args{};
  args.X = view(x), args.out = write(y);
  args.low_rank = {view(s), view(lora_B), static_cast<float>(scaling), nullptr, 0};
  Epilogue& end = args.epilogue;
  if (bias) end.bias = read(*bias), end.bias_stride = bias->stride(0);
  if (scale) end.scale.present = end.bias_last = true, end.scale.factors = as_row(*scale);
  if (need_z) end.z = write(z);
  W.give(on, args, x);
  product(on, args, x, allow_tf32);
  return {y, z};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_linear_cuda", TORCH_BOX(&pypeft::lora_linear)); }
