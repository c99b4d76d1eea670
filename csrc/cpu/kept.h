// Blocks of a matrix, and copies of blocks in another dtype or with dropped elements.
#pragma once
#include "tensors.h"

namespace pypeft {

// A view of rows [m, m + rows) and columns [n, n + columns) of a matrix.
Tensor block(const Tensor& t, int64_t m, int64_t rows, int64_t n, int64_t columns);

// keep * t in `dtype`, which is the dtype of t or float32. t is [M, N] with contiguous rows; mask is uint8 [M,
// ceil(N/8)] with contiguous rows, or null. Returns t itself if the mask is null and the dtype is that of t, otherwise
// a contiguous copy.
Tensor kept(const Tensor& t, ScalarType dtype, const Tensor* mask);

// The number of rows (or columns) of a block to copy, if the block has `other` columns (or rows). The block fits into a
// cache, and the number is a multiple of 32.
int64_t block_length(int64_t other);

}  // namespace pypeft
