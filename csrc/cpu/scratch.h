// Memory and matrices that the kernels work on.
#pragma once
#include <memory>
#include <new>

#include "cpu/isa/types.h"
#include "cpu/tensors.h"

namespace pypeft {

// Uninitialised floats on a cache line's boundary.
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

// A matrix copied as float into rows `ld` apart (padded() of their length), filled up with zeros.
struct Packed {
  Floats data;
  int64_t ld;
};

// Columns of a task when `columns` are shared out in tasks of at most `most`, a multiple of 32: an even number of tasks
// as wide as each other, since two threads have no use for a fifth one.
constexpr int64_t even_columns(int64_t columns, int64_t most) {
  const int64_t tasks = round_up(ceil_div(columns > 0 ? columns : 1, most), 2);
  return round_up(ceil_div(columns > 0 ? columns : 1, tasks), 32);
}

// t itself if its rows are contiguous (they may overlap or lie apart), else a contiguous copy.
Tensor with_dense_rows(const Tensor& t);

// factor * t [rows, columns], or factor * t^T if `transpose`.
Packed pack(const Tensor& t, float factor, bool transpose);

// A float tensor that every stride may be read through: t itself, or its float copy.
Tensor as_float(const Tensor& t);

}  // namespace pypeft
