// y = x W^T + b + scaling * s B^T.
//
//   x [M, K], weight [N, K] (any strides), bias [N] or none, s [M, r], lora_B [N, r] -> y [M, N] in x's dtype
//
// The frozen part is the vendor's GEMM, rounded once to y's dtype; the low-rank part is added to it in place, in float.
#include "cpu/add_low_rank.h"

namespace pypeft {
namespace {
Tensor lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& s,
                   const Tensor& lora_B, double scaling) {
  Tensor y = vendor_matmul(x, torch::stable::transpose(weight, 0, 1), bias);
  add_low_rank(y, s, pack(lora_B, static_cast<float>(scaling), true), nullptr);
  return y;
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_linear_cpu", TORCH_BOX(&pypeft::lora_linear)); }
