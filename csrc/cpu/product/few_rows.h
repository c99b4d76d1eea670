// Products of a few rows, as when decoding: the weight is read once.
#pragma once
#include "cpu/frozen/frozen.h"
#include "cpu/product/epilogue.h"
#include "cpu/scratch.h"

namespace pypeft {

// Whether few_rows() is the fastest way to a product of so many rows. They share what is read of the weight, and
// nothing is packed; where the vendor has instructions for bfloat16, its product is soon the faster one. decodes: b is
// quantised, and decoded in registers.
bool few_rows_win(ScalarType dtype, int64_t rows, bool decodes = false);

// Whether few_rows() is the fastest way to x lora_A^T of this rank: lora_shrink's own kernel packs lora_A first.
bool few_rows_shrink(ScalarType dtype, int64_t rows, int64_t rank);

// a W^T for W [N, K] of dense rows, in W's dtype.
Tensor few_rows(const Tensor& a, const Tensor& W);

// product() of few rows, without a mask: b of dense columns, as a transposed weight has, of a's dtype or quantised.
Tensor few_rows(const Tensor& a, const Right& b, const LowRank* low_rank, const Epilogue& epilogue);

// Whether every column of a matrix lies in one piece.
inline bool has_dense_columns(const Tensor& t) { return t.size(0) <= 1 || t.stride(0) == 1; }
inline bool has_dense_columns(const Right& b) {
  return b.w.is_dense() ? b.rows() <= 1 || b.w.weight.stride(b.transposed) == 1 : b.transposed;
}

}  // namespace pypeft
