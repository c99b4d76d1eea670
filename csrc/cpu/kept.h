// Blocks of a matrix, and their copies in another dtype or with elements dropped.
#pragma once
#include "cpu/tensors.h"

namespace pypeft {

// A view of rows [m, m + rows) and columns [n, n + columns) of a matrix.
Tensor block(const Tensor& t, int64_t m, int64_t rows, int64_t n, int64_t columns);

// keep * t in `dtype`, which is t's or float32: t [M, N] of dense rows, mask uint8 [M, ceil(N/8)] of dense rows or
// null. t itself if that is what is asked for, else a contiguous copy.
Tensor kept(const Tensor& t, ScalarType dtype, const Tensor* mask);

// Rows or columns of a block of such a copy, when the other side has `other` elements: few enough for a cache, a
// multiple of 32.
int64_t block_length(int64_t other);

}  // namespace pypeft
