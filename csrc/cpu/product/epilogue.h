// What is done to a product [M, N] with the frozen weight while its sums are in registers.
#pragma once
#include <optional>

#include "tensors.h"

namespace pypeft {

// factor * keep * (left right), added to the product: left [M, r], right [r, N] of the ops' dtypes, any strides; mask
// uint8 [M, ceil(N/8)], packed bits of what to keep, or null for all of it.
struct LowRank {
  const Tensor& left;
  const Tensor& right;
  double factor = 1;
  const Tensor* mask = nullptr;
};

// Of the sum z leaves factors * z + shift, column by column and in float, rounded once; or z itself if `factors` is
// null. There is no mask beside factors.
struct ColumnScale {
  const float* factors = nullptr;  // [N]
  const float* shift = nullptr;    // [N], or null
  void* z = nullptr;               // [M, N], contiguous, of the output's dtype: where z goes as well; or null
};

struct Epilogue {
  std::optional<Tensor> bias;  // [N] of the output's dtype, part of z
  ColumnScale scale;
};

}  // namespace pypeft
