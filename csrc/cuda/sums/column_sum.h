// The arguments of column_sum.cuh's sums.
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

// out[n] = the sum over the rows m of a[m][n] by[m][n], a being what the kernel has of its own; nothing if out is null.
struct ColumnSum {
  Matrix by;  // [rows, columns of a]
  void* out;
  Dtype dtype;
  // Filled in where the kernel is launched:
  SplitSum split;
  int blocks;  // that share a column
  int span;    // rows of each, where blocks make the sum that make nothing else
};

constexpr int kSumBytes = 512;  // of a row, that such a block takes

}  // namespace pypeft
