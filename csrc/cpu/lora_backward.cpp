// dX, dA and dB of a LoRA layer in one call of lora_ds_db, lora_dx and lora_da.
//
//   dY [.., N], x [.., K] (for dA), weight [N, K] and lora_A [r, K] (for dX), lora_B [N, r], s [M, r] and mask from
//   lora_forward -> dX [.., K], dA [r, K] in dtype_A, dB [N, r]; each [0] if not needed
#include "cpu/lora.h"
#include "lora_fits.h"

namespace pypeft {
namespace {
Tensor nothing(const Tensor& like, ScalarType dtype) { return new_empty(like, {0}, dtype); }

std::tuple<Tensor, Tensor, Tensor> lora_backward(const Tensor& dY, const std::optional<Tensor>& x,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& lora_A, const Tensor& lora_B,
                                                 const Tensor& s, const std::optional<Tensor>& mask, double scaling,
                                                 double p, bool need_dX, bool need_dA, bool need_dB, ScalarType dtype_A,
                                                 const std::optional<std::string>& format,
                                                 const std::optional<std::vector<Tensor>>& scales) {
  const std::optional<Stored> its =
      check_lora_backward(dY, x, weight, lora_A, lora_B, s, mask, p, need_dX, need_dA, dtype_A, format, scales);
  std::optional<Frozen> w;
  if (its) w = frozen(*weight, format, scales, *its);
  const Tensor grad = as_rows(dY);
  const auto [dS, dB] = lora_ds_db(grad, lora_B, s, scaling, need_dX || need_dA, need_dB);
  const Tensor kept = p > 0 && mask ? *mask : new_empty(dY, {0, 0}, ScalarType::Byte);
  Tensor dX = need_dX ? in_shape_of(dY, lora_dx(grad, *w, dS, *lora_A, kept, p)) : nothing(dY, dY.scalar_type());
  Tensor dA = need_dA ? lora_da(dS, as_rows(*x), kept, p, dtype_A) : nothing(dY, dtype_A);
  return {dX, dA, need_dB ? dB : nothing(dY, lora_B.scalar_type())};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_backward_cpu", TORCH_BOX(&pypeft::lora_backward)); }
