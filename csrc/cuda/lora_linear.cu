// y = x W^T + b + scaling s B^T, one launch; gemm.cuh and decode.cu have the kernels and their plans.
//
//   x [M, K], weight [N, K] (any strides), bias [N] or none, s [M, r], lora_B [N, r] -> y [M, N] in x's dtype
#include <optional>

#include "cuda/decode.h"
#include "cuda/gemm.h"

namespace pypeft {
namespace {
Tensor lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& s,
                   const Tensor& lora_B, double scaling, bool allow_tf32) {
  const OnDevice on(x);
  const int64_t M = x.size(0), N = weight.size(0);
  Tensor y = torch::stable::new_empty(x, {M, N});
  if (M == 0 || N == 0) return y;
  GemmArgs args{};
  args.X = view(x), args.W = view(weight), args.S = view(s), args.L = view(lora_B);
  args.factor = static_cast<float>(scaling);
  if (bias) args.bias = read(*bias), args.bias_stride = bias->stride(0);
  args.out = write(y), args.out_vectors = N * bytes_of(args.X.dtype) % 16 == 0;
  decodes(args) ? decode(on, args, allow_tf32) : gemm(on, args, allow_tf32);
  return y;
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_linear_cuda", TORCH_BOX(&pypeft::lora_linear)); }
