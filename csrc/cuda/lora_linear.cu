// y = x W^T + b + scaling s B^T, or with a scale z = x W^T + scaling s B^T and y = z o scale + b, one launch; gemm.cuh
// and decode.cu have the kernels and their plans.
//
//   x [M, K], weight [N, K] (any strides), bias [N] or none, s [M, r], lora_B [N, r], scale [N] or none
//   -> y [M, N] in x's dtype; z likewise, or [0, N] if not needed
#include <optional>
#include <tuple>

#include "cuda/decode.h"
#include "cuda/gemm.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Tensor& s, const Tensor& lora_B, double scaling,
                                       const std::optional<Tensor>& scale, bool need_z, bool allow_tf32) {
  check_storages("lora_linear", "x", x, "weight", weight, "bias", bias, "s", s, "lora_B", lora_B, "scale", scale);
  const OnDevice on(x);
  const int64_t M = x.size(0), N = weight.size(0);
  Tensor y = torch::stable::new_empty(x, {M, N});
  Tensor z = torch::stable::new_empty(x, {need_z ? M : 0, N});
  if (M == 0 || N == 0) return {y, z};
  GemmArgs args{};
  args.X = view(x), args.W = view(weight), args.S = view(s), args.L = view(lora_B);
  args.factor = static_cast<float>(scaling);
  if (bias) args.bias = read(*bias), args.bias_stride = bias->stride(0);
  args.out = write(y), args.out_vectors = N * bytes_of(args.X.dtype) % 16 == 0;
  if (scale) args.scale.on = Scale::outputs, args.scale.l = as_row(*scale), args.scale.bias_last = true;
  if (need_z) args.scale.z = write(z);
  decodes(args) ? decode(on, args, allow_tf32) : gemm(on, args, allow_tf32);
  return {y, z};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_linear_cuda", TORCH_BOX(&pypeft::lora_linear)); }
