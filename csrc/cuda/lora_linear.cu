// y = x W^T + b + scaling s B^T; with a scale z = x W^T + scaling s B^T and y = z o scale + b. One launch; gemm.cuh,
// decode.cu and decode_codes.cu have the kernels and their plans.
//
//   x [M, K], weight [N, K] (any strides, or quantised), bias [N] or none, s [M, r], lora_B [N, r], scale [N] or none
//   -> y [M, N] and z [M, N] in the dtype of x; z is [0, N] if not needed
#include "cuda/lora.h"

namespace pypeft {
void lora_linear(const OnDevice& on, const Tensor& x, Weight& weight, const std::optional<Tensor>& bias,
                 const Tensor& s, const Tensor& lora_B, double scaling, const std::optional<Tensor>& scale,
                 const Tensor* z, bool allow_tf32, const Tensor& y, bool overlaps) {
  if (y.numel() == 0) return;
  ProductArgs args{};
  args.X = view(x), args.out = write(y);
  args.low_rank = {view(s), view(lora_B), static_cast<float>(scaling), nullptr, 0, false};
  Epilogue& end = args.epilogue;
  if (bias) end.bias = read(*bias), end.bias_stride = bias->stride(0);
  if (scale) end.scale.present = end.bias_last = true, end.scale.factors = as_row(*scale);
  if (z) end.z = write(*z);
  const bool launched = weight.give(on, args, x);
  args.low_rank.overlaps = overlaps && !launched;
  product(on, args, x, allow_tf32);
}

namespace {
std::tuple<Tensor, Tensor> lora_linear_entry(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                             const Tensor& s, const Tensor& lora_B, double scaling,
                                             const std::optional<Tensor>& scale, bool need_z, bool allow_tf32,
                                             const std::optional<std::string>& format,
                                             const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_linear", "x", x, "bias", bias, "s", s, "lora_B", lora_B, "scale", scale);
  const OnDevice on(x);
  Weight W("lora_linear", weight, format, scales, lora_B.size(0), x.size(1));
  const Tensor y = new_empty(x, {x.size(0), W.N()}), z = new_empty(x, {need_z ? x.size(0) : 0, W.N()});
  lora_linear(on, x, W, bias, s, lora_B, scaling, scale, need_z ? &z : nullptr, allow_tf32, y);
  return {y, z};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_linear_cuda", TORCH_BOX(&pypeft::lora_linear_entry)); }
