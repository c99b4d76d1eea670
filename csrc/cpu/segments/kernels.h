// The low-rank products of rows that belong to different adapters. Whatever the batch, a row's sums are added up in an
// order that follows from its own adapter's rows alone, and a task never shares a sum with another.
#pragma once
#include "cpu/segments/segments.h"

namespace pypeft {

// s[m] = factor * drop(x[m]) A^T for every row of an adapter and zeros elsewhere: x [M, K] of dense rows, s [M, R] in
// the dtype of the adapters' A [r, K], mask uint8 [M, ceil(K/8)] or [0, ..]; both are written whole.
void segmented_shrink(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& x, const Tensor& s,
                      const Tensor& mask, Dtype adapter_dtype);

// y[m] += factor * keep * (left[m] right): y [M, N] contiguous, left float [M, R] of dense rows; `right` is the
// adapter's matrix [r, N], or [N, r] if `transposed`. mask is of y's columns, read where the adapter drops.
void segmented_add(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& y, const Tensor& left,
                   bool transposed, const Tensor& mask, Dtype adapter_dtype);

// dS[m] = factor * dY[m] B for the rows of an adapter: dY [M, N] of dense rows, dS float [M, R], of which the columns
// from r on stay as they are.
void segmented_ds(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& dY, const Tensor& dS,
                  Dtype adapter_dtype);

// Of every adapter factor * left^T (keep * right) over its rows: left float [M, R], right [M, N] of dense rows. Into
// out[a] [r, N], or [N, r] if `transposed`; zeros where it has no rows.
void segmented_gradient(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& left,
                        const Tensor& right, const Tensor& mask, const std::vector<Tensor>& out, bool transposed);

}  // namespace pypeft
