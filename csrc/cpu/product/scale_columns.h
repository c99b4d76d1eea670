// One pass over a matrix that scales its columns, or sums them.
#pragma once
#include "cpu/scratch.h"

namespace pypeft {

// in [M, N], rows dense, and ia3_l [N].
//   out  [M, N]  = in * ia3_l, multiplied in float and rounded once; null if not wanted; it may be `in`
//   dl   [N]     = the sum over rows of in * saved, in float; null if not wanted. saved [M, N] has rows dense
// in, saved and out are of one dtype. Summed by blocks of rows, and these in order: how many threads there are changes
// nothing.
void scale_columns(const Tensor& in, const Tensor& ia3_l, const Tensor* out, const Tensor* saved, const Tensor* dl);

}  // namespace pypeft
