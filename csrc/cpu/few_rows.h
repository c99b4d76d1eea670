// Products of a few rows, as when decoding: the weight is read once.
#pragma once
#include "cpu/column_scale.h"
#include "cpu/scratch.h"

namespace pypeft {

// Whether few_rows() is the fastest way to a product of so many rows. They share what is read of the weight, and
// nothing is packed; where the vendor has instructions for bfloat16, its product is soon the faster one.
bool few_rows_win(ScalarType dtype, int64_t rows);

// a b + addend + factor * left right: [M, N] in b's dtype, summed, then scaled, in float and rounded once.
//
//   a [M, K]; b [K, N] of dense columns, as a transposed weight has, of a's dtype or float32
//   addend [N] or [M, N] of b's dtype, or none
//   left [M, r], right [r, N], together or none: the low-rank part, float32 or a's dtype, any strides
Tensor few_rows(const Tensor& a, const Tensor& b, const std::optional<Tensor>& addend, const Tensor* left,
                const Tensor* right, double factor, const ColumnScale& scale = {});

// Whether every column of a matrix lies in one piece.
inline bool has_dense_columns(const Tensor& t) { return t.size(0) <= 1 || t.stride(0) == 1; }

}  // namespace pypeft
