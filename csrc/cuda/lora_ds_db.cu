// dS = scaling dY B and dB = scaling dY^T s, one pass over dY for both; gradient.cuh has the kernel and its plan.
//
//   dY [M, N], lora_B [N, r], s [M, r] -> dS [M, r] in s's dtype, dB [N, r] in lora_B's; [0, r] where not needed
#include <tuple>

#include "cuda/gradient.cuh"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor> lora_ds_db(const Tensor& dY, const Tensor& lora_B, const Tensor& s, double scaling,
                                      bool need_dS, bool need_dB, bool allow_tf32) {
  const OnDevice on(dY);
  const int64_t M = dY.size(0), N = dY.size(1), r = s.size(1);
  Tensor dS = torch::stable::new_empty(s, {need_dS ? M : 0, r});
  Tensor dB = torch::stable::new_empty(lora_B, {need_dB ? N : 0, r});
  if (!need_dS && !need_dB) return {dS, dB};
  const bool wide = s.scalar_type() == ScalarType::Float || lora_B.scalar_type() == ScalarType::Float;
  GradientArgs args{view(dY), view(s), view(lora_B), size_of(r), 0, nullptr, 0, nullptr, r, 1, nullptr};
  const gradient::Cut cut = gradient::cut(on, args.X, args.rank, wide);
  args.span = cut.span;
  const Tensor outer = new_partials(dY, need_dB ? cut.splits : 0, N, r);
  const Tensor inner = new_partials(dY, need_dS ? cut.blocks : 0, M, r);
  if (need_dB) args.outer = write<float>(outer);
  if (need_dS) args.inner = write<float>(inner);
  gradient::run(on, cut, args, wide, allow_tf32);
  const float factor = static_cast<float>(scaling);
  const Sum sum_dS = sum_of(inner, factor, dS), sum_dB = sum_of(outer, factor, dB);
  need_dS ? add_partials(on, sum_dS, sum_dB) : add_partials(on, sum_dB);
  return {dS, dB};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_ds_db_cuda", TORCH_BOX(&pypeft::lora_ds_db)); }
