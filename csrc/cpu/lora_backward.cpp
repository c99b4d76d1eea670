// dX, dA, dB of a LoRA layer in one call: what lora_ds_db, lora_dx and lora_da compute.
//
//   dY [.., N], x [.., K] (for dA), weight [N, K] and lora_A [r, K] (for dX), lora_B [N, r], s [M, r] and mask from
//   lora_forward -> dX [.., K], dA [r, K] in dtype_A, dB [N, r]; an empty [0] where not needed
#include "cpu/fits.h"
#include "cpu/lora.h"

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
  check_storages("lora_backward", "dY", dY, "x", x, "lora_A", lora_A, "lora_B", lora_B, "s", s, "mask", mask);
  fits(dY.dim() > 0 && is_activation(dY) && is_matrix(lora_B) && is_matrix(s) && is_probability(p));
  const Tensor grad = as_rows(dY);
  const int64_t M = grad.size(0), N = grad.size(1), r = lora_B.size(1);
  fits(r > 0 && lora_B.size(0) == N && s.size(0) == M && s.size(1) == r);
  fits(is_adapter(lora_B, dY) && is_adapter(s, dY));
  std::optional<Frozen> w;
  if (need_dX) {
    fits(weight && lora_A && is_matrix(*lora_A) && lora_A->size(0) == r && is_adapter(*lora_A, dY));
    w = frozen("lora_backward", *weight, format, scales, N, lora_A->size(1));
    fits(w->N == N && w->K == lora_A->size(1) && (!w->is_dense() || like(*weight, dY)));
  }
  if (need_dA) {
    fits(x && x->dim() > 0 && like(*x, dY) && (dtype_A == x->scalar_type() || dtype_A == s.scalar_type()));
    fits(rows_of(*x) == M);
  }
  if (p > 0 && (need_dX || need_dA)) fits(mask.has_value());
  if (mask && need_dX) fits(is_mask(*mask, p, M, w->K));
  if (mask && need_dA) fits(is_mask(*mask, p, M, x->size(-1)));

  const auto [dS, dB] = lora_ds_db(grad, lora_B, s, scaling, need_dX || need_dA, need_dB);
  const Tensor kept = p > 0 && mask ? *mask : new_empty(dY, {0, 0}, ScalarType::Byte);
  Tensor dX = need_dX ? in_shape_of(dY, lora_dx(grad, *w, dS, *lora_A, kept, p)) : nothing(dY, dY.scalar_type());
  Tensor dA = need_dA ? lora_da(dS, as_rows(*x), kept, p, dtype_A) : nothing(dY, dtype_A);
  return {dX, dA, need_dB ? dB : nothing(dY, lora_B.scalar_type())};
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_backward_cpu", TORCH_BOX(&pypeft::lora_backward)); }
