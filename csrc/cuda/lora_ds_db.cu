// dS = scaling dY B and dB = scaling dY^T s by one pass over dY; gradient.cuh has the kernel and its plan.
//
//   dY [M, N], lora_B [N, r], s [M, r] -> dS [M, r] in the dtype of s, dB [N, r] in the dtype of
//   lora_B; each [0, r] if not needed
#include "cuda/gradient/gradient.h"
#include "cuda/lora.h"

namespace pypeft {
std::tuple<Tensor, Tensor> lora_ds_db(const OnDevice& on, const Tensor& dY, const Tensor& lora_B, const Tensor& s,
                                      double scaling, bool need_dS, bool need_dB, bool allow_tf32) {
  const int64_t M = dY.size(0), N = dY.size(1), r = s.size(1);
  Tensor dS = new_empty(s, {need_dS ? M : 0, r});
  Tensor dB = new_empty(lora_B, {need_dB ? N : 0, r});
  if (!need_dS && !need_dB) return {dS, dB};
  const bool wide = s.scalar_type() == ScalarType::Float || lora_B.scalar_type() == ScalarType::Float;
  GradientArgs args{};
  args.X = view(dY), args.S = view(s), args.B = view(lora_B), args.rank = size_of(r);
  args.factor = static_cast<float>(scaling);
  if (need_dB) args.outer = {write(dB), r, 1, dtype_of(dB), {}};
  if (need_dS) args.inner = {write(dS), r, 1, dtype_of(dS), {}};
  gradient::run(on, args, dY, wide, allow_tf32);
  return {dS, dB};
}

namespace {
std::tuple<Tensor, Tensor> lora_ds_db_entry(const Tensor& dY, const Tensor& lora_B, const Tensor& s, double scaling,
                                            bool need_dS, bool need_dB, bool allow_tf32) {
  check_storages("lora_ds_db", "dY", dY, "lora_B", lora_B, "s", s);
  return lora_ds_db(OnDevice(dY), dY, lora_B, s, scaling, need_dS, need_dB, allow_tf32);
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_ds_db_cuda", TORCH_BOX(&pypeft::lora_ds_db_entry)); }
