// The argument type that describes a matrix to a kernel.
#pragma once
#include <cstdint>

#include "cuda/device/launch.h"

namespace pypeft {

// A matrix [rows, cols] of any strides, in elements. A stride may be 0: autograd creates expanded gradients.
struct Matrix {
  const void* data;
  int64_t row, col;
  int rows, cols;
  Dtype dtype;
  bool vectors;  // each row is contiguous, a whole number of 16 bytes long, and begins at a multiple of 16 bytes
};

// The kernels hold sizes as int and offsets as int64_t.
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

// The vector v as a matrix of one row.
inline Matrix as_row(const Tensor& v) { return matrix(read(v), 0, v.stride(0), 1, size_of(v.size(0)), dtype_of(v)); }

inline Matrix transposed(const Matrix& m) { return matrix(m.data, m.col, m.row, m.cols, m.rows, m.dtype); }

}  // namespace pypeft
