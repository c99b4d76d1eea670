// dX, dA and dB of a LoRA layer: lora_ds_db, lora_dx and lora_da in one call, with their launches.
//
//   dY [.., N], x [.., K] (for dA), weight [N, K] and lora_A [r, K] (for dX), lora_B [N, r], s [M, r] and mask from
//   lora_forward -> dX [.., K], dA [r, K] in dtype_A, dB [N, r]; each [0] if not needed
#include "cuda/lora.h"
#include "lora_fits.h"

namespace pypeft {
namespace {
std::tuple<Tensor, Tensor, Tensor> lora_backward(const Tensor& dY, const std::optional<Tensor>& x,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& lora_A, const Tensor& lora_B,
                                                 const Tensor& s, const std::optional<Tensor>& mask, double scaling,
                                                 double p, bool need_dX, bool need_dA, bool need_dB, ScalarType dtype_A,
                                                 bool allow_tf32, const std::optional<std::string>& format,
                                                 const std::optional<std::vector<Tensor>>& scales) {
  const std::optional<Stored> its =
      check_lora_backward(dY, x, weight, lora_A, lora_B, s, mask, p, need_dX, need_dA, dtype_A, format, scales);
  const OnDevice on(dY);
  const Tensor grad = as_rows(dY);
  const auto [dS, dB] = lora_ds_db(on, grad, lora_B, s, scaling, need_dX || need_dA, need_dB, allow_tf32);
  std::optional<Weight> W;
  if (its) W.emplace(*weight, format, scales, *its);
  const Tensor dX = W ? in_shape_of(dY, lora_dx(on, grad, *W, dS, *lora_A, mask, p, allow_tf32)) : new_empty(dY, {0});
  const Tensor dA = need_dA ? lora_da(on, dS, as_rows(*x), mask, p, dtype_A, allow_tf32) : new_empty(dY, {0}, dtype_A);
  return {dX, dA, need_dB ? dB : new_empty(lora_B, {0})};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_backward_cuda", TORCH_BOX(&pypeft::lora_backward)); }
