// What a product that something else has made still lacks.
#pragma once
#include "cpu/product/epilogue.h"
#include "cpu/scratch.h"

namespace pypeft {

// y [M, N], contiguous, += factor * keep * (left right) if there is a low-rank part, scaled if there is a scale, and
// rounded once to y's dtype. The low-rank part is summed here in float, or by the vendor in the dtype of `left` and
// `right`, a block of rows at a time.
void add_and_scale(const Tensor& y, const LowRank* low_rank, const ColumnScale& scale);

}  // namespace pypeft
