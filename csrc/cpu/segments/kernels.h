// The low-rank products of rows that belong to different adapters. The order in which the sums of a row are added
// depends on the rows of its adapter alone, not on the other rows of the batch. No sum is shared between tasks.
#pragma once
#include "cpu/segments/segments.h"

namespace pypeft {

// s[m] = factor * drop(x[m]) A^T for every row with an adapter, 0 for the other rows. x is [M, K] with contiguous rows;
// s is [M, R] in the dtype of the adapters' A [r, K]; mask is uint8 [M, ceil(K/8)], or [0, ..] without dropout. Every
// element of s and mask is written.
void segmented_shrink(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& x, const Tensor& s,
                      const Tensor& mask, Dtype adapter_dtype);

// y[m] += factor * keep * (left[m] right) for every row with an adapter. y is [M, N] and contiguous; left is float [M,
// R] with contiguous rows; right is the matrix of the adapter, [r, N], or [N, r] if `transposed`. mask has a bit for
// each column of y, and is used for adapters with dropout.
void segmented_add(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& y, const Tensor& left,
                   bool transposed, const Tensor& mask, Dtype adapter_dtype);

// dS[m] = factor * dY[m] B for every row with an adapter. dY is [M, N] with contiguous rows; dS is float [M, R], whose
// columns from r on are not written.
void segmented_ds(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& dY, const Tensor& dS,
                  Dtype adapter_dtype);

// out[a] = factor * left^T (keep * right) over the rows of adapter a, 0 if it has no rows. left is float [M, R]; right
// is [M, N] with contiguous rows; out[a] is [r, N], or [N, r] if `transposed`.
void segmented_gradient(const Segments& rows, const std::vector<Adapter>& adapters, const Tensor& left,
                        const Tensor& right, const Tensor& mask, const std::vector<Tensor>& out, bool transposed);

}  // namespace pypeft
