// What lora_linear and lora_dx share: the frozen product with the low-rank part added.
#pragma once
#include "cpu/column_scale.h"
#include "cpu/scratch.h"

namespace pypeft {

// a b + bias + factor * keep * (left right): [M, N] in a's dtype from left [M, r], right [r, N] of the ops' dtypes, any
// strides; mask [M, ceil(N/8)] is packed bits of what to keep of the low-rank part, or null for all of it. By
// few_rows() or gemm() where they are faster; else the vendor's product over all rows at once, to which the low-rank
// part is then added, in float or by the vendor too. The sum is scaled as it leaves, if there is a scale: then there is no mask.
Tensor frozen_and_low_rank(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& left,
                           const Tensor& right, double factor, const Tensor* mask, const ColumnScale& scale = {});

}  // namespace pypeft
