// dX = dY W + keep * (dS A) * 65536 / (65536 - T), one launch; gemm.cuh has the kernel and its plan.
//
//   dY [M, N], weight [N, K] (any strides), dS [M, r], lora_A [r, K], mask uint8 [M, ceil(K/8)] -> dX [M, K] in dY's
//   dtype
#include "cuda/dropout.cuh"
#include "cuda/gemm.h"

namespace pypeft {
namespace {
Tensor lora_dx(const Tensor& dY, const Tensor& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& given_mask,
               double p, bool allow_tf32) {
  check_storages("lora_dx", "dY", dY, "weight", weight, "dS", dS, "lora_A", lora_A, "mask", given_mask);
  const OnDevice on(dY);
  const int64_t M = dY.size(0), K = weight.size(1);
  Tensor dX = torch::stable::new_empty(dY, {M, K});
  if (M == 0 || K == 0) return dX;
  const Tensor mask = p > 0 ? torch::stable::contiguous(given_mask) : given_mask;
  GemmArgs args{};
  args.X = view(dY), args.W = transposed(view(weight)), args.S = view(dS), args.L = transposed(view(lora_A));
  args.factor = p > 0 ? dropout_scale(p) : 1.0f;
  if (p > 0) args.mask = read<uint8_t>(mask), args.mask_row = mask.size(1);
  args.out = write(dX), args.out_vectors = K * bytes_of(args.X.dtype) % 16 == 0;
  gemm(on, args, allow_tf32);
  return dX;
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_dx_cuda", TORCH_BOX(&pypeft::lora_dx)); }
