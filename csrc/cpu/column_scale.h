// What DoRA does to a product [M, N] before it is rounded.
#pragma once

namespace pypeft {

// Of the product z leaves factors * z + shift, column by column and in float; or z itself if all of it is null.
struct ColumnScale {
  const float* factors = nullptr;  // [N]
  const float* shift = nullptr;    // [N], or null
  void* z = nullptr;               // [M, N], contiguous, of the output's dtype: where z goes as well; or null
};

}  // namespace pypeft
