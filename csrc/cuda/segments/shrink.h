// The down-projection of rows that belong to different adapters.
#pragma once
#include "cuda/segments/adapters.h"

namespace pypeft {

// s_m = A_a x_m, where a is the adapter of row m. x [M, K], A of each adapter [r_a, K] -> s [M, R], contiguous, in the
// dtype of A; R >= r_a. s_m is 0 from r_a on, and 0 if row m has no adapter. M >= 1.
void segmented_shrink(const OnDevice& on, const Matrix& x, const Adapters& A, Tensor& s);

}  // namespace pypeft
