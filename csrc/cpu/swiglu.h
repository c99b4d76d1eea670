// The work of a thread in swiglu and swiglu_backward.
#pragma once
#include "tensors.h"

namespace pypeft {

// The least number of rows of N elements for which a thread is worth its cost.
inline int64_t swiglu_grain(int64_t N) { return 1 + 16384 / (N + 1); }

}  // namespace pypeft
