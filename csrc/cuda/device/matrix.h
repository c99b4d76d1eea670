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
  bool vectors;  // each row is contiguous and begins at an address that is a multiple of 16 bytes
};

// The kernels hold sizes as int and offsets as int64_t.
inline int size_of(int64_t size) {
  STD_TORCH_CHECK(size <= INT32_MAX, "pypeft_fast: the CUDA kernels take sizes up to 2147483647, got ", size);
  return static_cast<int>(size);
}

inline bool has_vectors(const void* data, int64_t row, int64_t col, int64_t rows, int64_t cols, Dtype dtype) {
  const int64_t bytes = bytes_of(dtype);
  return (col == 1 || cols <= 1) && reinterpret_cast<uintptr_t>(data) % 16 == 0 && (row * bytes % 16 == 0 || rows <= 1);
}

inline Matrix view(const Tensor& t) {
  Matrix m{read(t), t.stride(0), t.stride(1), size_of(t.size(0)), size_of(t.size(1)), dtype_of(t), false};
  m.vectors = has_vectors(m.data, m.row, m.col, m.rows, m.cols, m.dtype);
  return m;
}

// The vector v as a matrix of one row.
inline Matrix as_row(const Tensor& v) {
  Matrix m{read(v), 0, v.stride(0), 1, size_of(v.size(0)), dtype_of(v), false};
  m.vectors = has_vectors(m.data, m.row, m.col, m.rows, m.cols, m.dtype);
  return m;
}

inline Matrix transposed(const Matrix& m) {
  Matrix t{m.data, m.col, m.row, m.cols, m.rows, m.dtype, false};
  t.vectors = has_vectors(t.data, t.row, t.col, t.rows, t.cols, t.dtype);
  return t;
}

}  // namespace pypeft
