// Products of a few rows, as when decoding: the weight is read once, at the speed of the memory.
#pragma once
#include "cpu/scratch.h"

namespace pypeft {

// Up to so many rows. They share what is read of the weight; packing it or a small matrix would cost more than it
// gives.
constexpr int64_t FEW_ROWS = 8;

// x weight^T + addend + factor * left right^T: [M, N] in weight's dtype, summed in float and rounded once.
//
//   x [M, K], M <= FEW_ROWS; weight [N, K] of dense rows, x's dtype or float32
//   addend [N] or [M, N] of weight's dtype, or none
//   left [M, r], right [N, r], together or none: the low-rank part, float32 or x's dtype, any strides
Tensor few_rows(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& addend, const Tensor* left,
                const Tensor* right, double factor);

}  // namespace pypeft
