// Temporary memory and temporary matrices of the kernels.
#pragma once
#include <memory>
#include <new>

#include "cpu/isa/types.h"
#include "tensors.h"

namespace pypeft {

// Uninitialised floats, aligned to a cache line.
class Floats {
 public:
  explicit Floats(int64_t n) : data_(static_cast<float*>(::operator new(n * sizeof(float), LINE))) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Delete {
    void operator()(float* p) const { ::operator delete(p, LINE); }
  };
  std::unique_ptr<float, Delete> data_;
};

// A copy of a matrix as float. Rows are ld = padded(columns) apart and padded with zeros.
struct Packed {
  Floats data;
  int64_t ld;
};

// The number of columns of a task, a multiple of 32, when `columns` are divided into tasks of at most `most` columns.
// The number of tasks is even and all tasks are equally wide, so that two threads have equal work.
constexpr int64_t even_columns(int64_t columns, int64_t most) {
  const int64_t tasks = round_up(ceil_div(columns > 0 ? columns : 1, most), 2);
  return round_up(ceil_div(columns > 0 ? columns : 1, tasks), 32);
}

// t itself if each row is contiguous (with any stride between rows), otherwise a contiguous copy.
Tensor with_dense_rows(const Tensor& t);

// factor * t [rows, columns], or factor * t^T if `transpose`.
Packed pack(const Tensor& t, float factor, bool transpose);

// t in float32: t itself, with any strides, or a copy.
Tensor as_float(const Tensor& t);

}  // namespace pypeft
