// y = x W^T + b + scaling * s B^T.
//
//   x [M, K], weight [N, K] (any strides), bias [N] or none, s [M, r], lora_B [N, r] -> y [M, N] in x's dtype
//
// add_low_rank.h tells how.
#include "cpu/add_low_rank.h"

namespace pypeft {
namespace {
Tensor lora_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& s,
                   const Tensor& lora_B, double scaling) {
  const Tensor across = torch::stable::transpose(weight, 0, 1), up = torch::stable::transpose(lora_B, 0, 1);
  return frozen_and_low_rank(x, across, bias, s, up, scaling, nullptr);
}
}  // namespace
}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("lora_linear_cpu", TORCH_BOX(&pypeft::lora_linear)); }
