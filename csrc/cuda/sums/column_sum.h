// The arguments of the column sums in column_sum.cuh.
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

// out[n] = the sum over the rows m of a[m][n] * by[m][n], where the kernel has a. If out is null, no sum is computed.
struct ColumnSum {
  Matrix by;  // [rows, columns of a]
  void* out;
  Dtype dtype;
  // Set where the kernel is launched:
  SplitSum split;
  int blocks;  // the number of blocks that share a column
  int span;    // rows of a block, if separate blocks compute the sum
};

constexpr int kSumBytes = 512;  // bytes of a row that such a separate block adds

}  // namespace pypeft
