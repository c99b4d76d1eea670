// dA = dS^T drop(x) by one pass over x; gradient.cuh has the kernel and its plan.
//
//   dS [M, r], x [M, K], mask uint8 [M, ceil(K/8)] -> dA [r, K] in `dtype`
#include "cuda/gradient/gradient.h"
#include "cuda/lora.h"

namespace pypeft {
Tensor lora_da(const OnDevice& on, const Tensor& dS, const Tensor& x, const std::optional<Tensor>& given_mask, double p,
               ScalarType dtype, bool allow_tf32) {
  const int64_t K = x.size(1), r = dS.size(1);
  Tensor dA = new_empty(x, {r, K}, dtype);
  const bool wide = dS.scalar_type() == ScalarType::Float;
  GradientArgs args{};
  args.X = view(x), args.S = view(dS), args.rank = size_of(r);
  args.factor = static_cast<float>(dropout_scale(p));
  std::optional<Tensor> mask;
  if (p > 0) {
    mask = as_contiguous(*given_mask);
    args.mask = read<uint8_t>(*mask), args.mask_row = mask->size(1);
  }
  args.outer = {write(dA), 1, K, dtype_of(dA), {}};
  gradient::run(on, args, x, wide, allow_tf32);
  return dA;
}

namespace {
Tensor lora_da_entry(const Tensor& dS, const Tensor& x, const Tensor& mask, double p, ScalarType dtype,
                     bool allow_tf32) {
  check_storages("lora_da", "dS", dS, "x", x, "mask", mask);
  return lora_da(OnDevice(x), dS, x, mask, p, dtype, allow_tf32);
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_da_cuda", TORCH_BOX(&pypeft::lora_da_entry)); }
