// dX = dY W + keep * (dS A) * 65536 / (65536 - T).
//
//   dY [M, N], weight [N, K] (any strides, or quantised), dS [M, r], lora_A [r, K], mask uint8 [M, ceil(K/8)]
//   -> dX [M, K] in the dtype of dY
//
// product() computes all terms.
#include "cpu/lora.h"

#include "cpu/product/product.h"
#include "fits.h"

namespace pypeft {
Tensor lora_dx(const Tensor& dY, const Frozen& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& mask,
               double p) {
  const LowRank through_adapter{dS, lora_A, dropout_scale(p), p > 0 ? &mask : nullptr};
  return product(dY, {weight, false}, &through_adapter);
}

namespace {
Tensor lora_dx_entry(const Tensor& dY, const Tensor& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& mask,
                     double p, const std::optional<std::string>& format,
                     const std::optional<std::vector<Tensor>>& scales) {
  check_storages("lora_dx", "dY", dY, "dS", dS, "lora_A", lora_A, "mask", mask);
  fits(is_matrix(dY) && is_matrix(dS) && is_matrix(lora_A) && is_activation(dY));
  const int64_t M = dY.size(0), N = dY.size(1), K = lora_A.size(1);
  const Frozen w = frozen("lora_dx", weight, format, scales, N, K);
  fits(w.N == N && w.K == K && (!w.is_dense() || like(weight, dY)) && dS.size(0) == M);
  fits(dS.size(1) == lora_A.size(0) && dS.size(1) > 0 && is_adapter(lora_A, dY) && is_adapter(dS, dY) &&
       is_mask(mask, dY, p, M, K));
  return lora_dx(dY, w, dS, lora_A, mask, p);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_dx_cpu", TORCH_BOX(&pypeft::lora_dx_entry)); }
