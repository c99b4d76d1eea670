// What swiglu and swiglu_backward share outside of their loops.
#pragma once
#include "cpu/tensors.h"

namespace pypeft {

// Rows of N elements that are worth a thread.
inline int64_t swiglu_grain(int64_t N) { return 1 + 16384 / (N + 1); }

}  // namespace pypeft
