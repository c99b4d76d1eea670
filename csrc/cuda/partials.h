// The second stage of the reductions: partial sums, added in the order of their numbers whatever the block that made
// them, so that a result never depends on who came first.
#pragma once
#include "cuda/matrix.h"

namespace pypeft {

// out[i] = factor * (parts[0][i] + parts[1][i] + ...), for i < size.
struct Sum {
  const float* parts;
  int64_t size;
  int count;
  float factor;
  void* out;
  Dtype dtype;
};

Tensor new_partials(const Tensor& like, int64_t count, int64_t rows, int64_t cols);  // float [count, rows, cols]
Sum sum_of(const Tensor& parts, float factor, const Tensor& out);
// One launch for both; a Sum of size 0 is nothing to do.
void add_partials(const OnDevice& on, const Sum& first, const Sum& second = {});

}  // namespace pypeft
