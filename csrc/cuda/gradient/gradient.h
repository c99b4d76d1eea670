// The gradients of the adapter's two matrices: both are X^T S with a tall X, and one pass over X makes X B besides.
//
//   lora_ds_db  X = dY [M, N], S = s, B = lora_B:  dB = factor X^T S [N, r],  dS = factor X B [M, r]
//   lora_da     X = x [M, K], S = dS, a mask on X: dA = factor (X^T S)^T [r, K]
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

struct GradientSum {
  void* out;  // null: not needed
  int64_t row, col;
  Dtype dtype;
  SplitSum split;  // filled in by run()
};

struct GradientArgs {
  Matrix X, S, B;  // S [M, r]; B [cols of X, r] if X B is needed
  int rank;
  int span;             // rows of X that a block takes
  const uint8_t* mask;  // [M, mask_row], or null
  int64_t mask_row;
  float factor;
  GradientSum outer;  // X^T S, with these strides
  GradientSum inner;  // X B, contiguous
};

namespace gradient {
// Floats of a row in a part of X B, of a block that has up to kRank ranks.
__host__ __device__ constexpr int inner_width(int rank, int kRank) {
  return ((rank < kRank ? rank : kRank) + 3) / 4 * 4;
}

// One launch. Needs p's X, S, B, rank, mask, factor and outputs; `like` is a tensor of the device.
void run(const OnDevice& on, GradientArgs p, const Tensor& like, bool wide, bool tf32);
}  // namespace gradient
}  // namespace pypeft
