// dX = dY W + keep * (dS A) * 65536 / (65536 - T).
//
//   dY [M, N], weight [N, K] (any strides), dS [M, r], lora_A [r, K], mask uint8 [M, ceil(K/8)] -> dX [M, K] in dY's
//   dtype
//
// The frozen part is the vendor's GEMM, rounded once to dX's dtype; the low-rank part is added to it in place, in
// float.
#include "cpu/add_low_rank.h"

namespace pypeft {
namespace {
Tensor lora_dx(const Tensor& dY, const Tensor& weight, const Tensor& dS, const Tensor& lora_A, const Tensor& mask,
               double p) {
  Tensor dX = vendor_matmul(dY, weight, std::nullopt);
  const Packed A = pack(lora_A, static_cast<float>(dropout_scale(p)), false);
  if (p > 0) {
    const Tensor bits = with_dense_rows(mask);
    add_low_rank(dX, dS, A, &bits);
  } else {
    add_low_rank(dX, dS, A, nullptr);
  }
  return dX;
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_dx_cpu", TORCH_BOX(&pypeft::lora_dx)); }
