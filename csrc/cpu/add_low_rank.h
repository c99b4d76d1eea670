// What lora_linear and lora_dx share: the vendor's GEMM for the frozen part, and the low-rank part added in place.
#pragma once
#include "cpu/scratch.h"

namespace pypeft {

// The GEMM runs over all rows at once: by blocks of 64 rows, whose result would still be in the cache when the low-rank
// part is added, the vendor's took 8 to 35 % longer (512 x 576 x 576 and 512 x 2048 x 2048, one thread, float32 and
// bfloat16), while the whole low-rank part takes at most 12 % of it.

// out = a b, or a b + bias: [M, N] from a [M, K], b [K, N] with any strides, bias [N], all of one dtype.
Tensor vendor_matmul(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias);

// y [M, N] += keep * (left [M, r] right [r, N]): summed in float, then rounded once to y's dtype. `left` is any matrix
// of the ops' dtypes; `right` was packed, with any factor in it; mask [M, ceil(N/8)] is packed bits, or null to keep
// all.
void add_low_rank(const Tensor& y, const Tensor& left, const Packed& right, const Tensor* mask);

}  // namespace pypeft
