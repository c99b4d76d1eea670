// A matrix as the kernels see it, and the choice of what can read it.
#pragma once
#include <cstdint>

#include "cuda/device/launch.h"

namespace pypeft {

// [rows, cols], any strides, in elements. Strides may be 0: autograd hands out expanded gradients.
struct Matrix {
  const void* data;
  int64_t row, col;
  int rows, cols;
  Dtype dtype;
  bool vectors;  // every row is a whole number of 16 bytes, dense, and starts at a multiple of them
};

// Sizes are ints in the kernels; offsets are 64 bits wide.
inline int size_of(int64_t size) {
  STD_TORCH_CHECK(size <= INT32_MAX, "pypeft_fast: the CUDA kernels take sizes up to 2147483647, got ", size);
  return static_cast<int>(size);
}

// A stride that leads to no second row may be anything; it becomes 0, so that what is computed from it is aligned.
inline Matrix matrix(const void* data, int64_t row, int64_t col, int rows, int cols, Dtype dtype) {
  if (rows <= 1) row = 0;
  const int64_t bytes = bytes_of(dtype);
  const bool dense = col == 1 || cols == 0, whole = row * bytes % 16 == 0 && cols * bytes % 16 == 0;
  return {data, row, col, rows, cols, dtype, dense && whole && reinterpret_cast<uintptr_t>(data) % 16 == 0};
}

inline Matrix view(const Tensor& t) {
  return matrix(read(t), t.stride(0), t.stride(1), size_of(t.size(0)), size_of(t.size(1)), dtype_of(t));
}

// A vector, as the only row of a matrix.
inline Matrix as_row(const Tensor& v) { return matrix(read(v), 0, v.stride(0), 1, size_of(v.size(0)), dtype_of(v)); }

inline Matrix transposed(const Matrix& m) { return matrix(m.data, m.col, m.row, m.cols, m.rows, m.dtype); }

}  // namespace pypeft
