// dA = dS^T drop(x), one pass over x; gradient.cuh has the kernel and its plan.
//
//   dS [M, r], x [M, K], mask uint8 [M, ceil(K/8)] -> dA [r, K] in `dtype`
#include "cuda/gradient.cuh"

namespace pypeft {
namespace {
Tensor lora_da(const Tensor& dS, const Tensor& x, const Tensor& given_mask, double p, ScalarType dtype,
               bool allow_tf32) {
  const OnDevice on(x);
  const int64_t K = x.size(1), r = dS.size(1);
  Tensor dA = torch::stable::new_empty(x, {r, K}, dtype);
  const Tensor mask = p > 0 ? torch::stable::contiguous(given_mask) : given_mask;
  const bool wide = dS.scalar_type() == ScalarType::Float;
  GradientArgs args{view(x), view(dS), {}, size_of(r), 0, nullptr, 0, nullptr, 1, K, nullptr};
  if (p > 0) args.mask = read<uint8_t>(mask), args.mask_row = mask.size(1);
  const gradient::Cut cut = gradient::cut(on, args.X, args.rank, wide);
  args.span = cut.span;
  const Tensor outer = new_partials(x, cut.splits, r, K);
  args.outer = write<float>(outer);
  gradient::run(on, cut, args, wide, allow_tf32);
  add_partials(on, sum_of(outer, p > 0 ? dropout_scale(p) : 1.0f, dA));
  return dA;
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_da_cuda", TORCH_BOX(&pypeft::lora_da)); }
