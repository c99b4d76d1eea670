// The product with the frozen weight, alone.
#pragma once
#include "cpu/scratch.h"

namespace pypeft {

// a b, or a b + bias: [M, N] in a's dtype from a [M, K], b [K, N] with any strides, bias [N], all of one dtype. By
// gemm() or few_rows() with no low-rank part where they are faster, else the vendor's.
Tensor frozen_product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias);

}  // namespace pypeft
