// dX = dY W + keep * (dS A) * 65536 / (65536 - T), one launch; gemm.cuh has the kernel and its plan.
//
//   dY [M, N], weight [N, K] (any strides), dS [M, r], lora_A [r, K], mask uint8 [M, ceil(K/8)] -> dX [M, K] in the
//   dtype of dY
#include "cuda/lora.h"

namespace pypeft {
Tensor lora_dx(const OnDevice& on, const Tensor& dY, Weight& weight, const Tensor& dS, const Tensor& lora_A,
               const std::optional<Tensor>& given_mask, double p, bool allow_tf32) {
  const int64_t M = dY.size(0), K = weight.K();
  Tensor dX = new_empty(dY, {M, K});
  if (M == 0 || K == 0) return dX;
  ProductArgs args{};
  args.X = view(dY), args.W = transposed(weight.dense(on, dY)), args.out = write(dX);
  args.low_rank = {view(dS), transposed(view(lora_A)), static_cast<float>(dropout_scale(p)), nullptr, 0, false};
  std::optional<Tensor> mask;
  if (p > 0) {
    mask = as_contiguous(*given_mask);
    args.low_rank.mask = read<uint8_t>(*mask), args.low_rank.mask_row = mask->size(1);
  }
  product(on, args, dY, allow_tf32);
  return dX;
}

namespace {
Tensor lora_dx_entry(const Tensor& dY, const Tensor& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& mask,
                     double p, bool allow_tf32, const std::optional<std::string>& format,
                     const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_dx", "dY", dY, "dS", dS, "lora_A", lora_A, "mask", mask);
  const OnDevice on(dY);
  Weight W("lora_dx", weight, format, scales, dY.size(1), lora_A.size(1));
  return lora_dx(on, dY, W, dS, lora_A, mask, p, allow_tf32);
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_dx_cuda", TORCH_BOX(&pypeft::lora_dx_entry)); }
