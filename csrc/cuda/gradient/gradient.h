// The gradients of lora_A and lora_B. Both are X^T S with a tall X; the same pass over X can also compute X B.
//
//   lora_ds_db  X = dY [M, N], S = s, B = lora_B:  dB = factor X^T S [N, r],  dS = factor X B [M, r]
//   lora_da     X = x [M, K], S = dS, a mask on X: dA = factor (X^T S)^T [r, K]
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/sums/split_sum.h"

namespace pypeft {

struct GradientSum {
  void* out;  // null if the sum is not needed
  int64_t row, col;
  Dtype dtype;
  SplitSum split;  // set by run()
};

struct GradientArgs {
  Matrix X, S, B;  // S [M, r]; B [cols of X, r] if X B is needed
  int rank;
  int span;             // rows of X of a block; set by run()
  const uint8_t* mask;  // [M, mask_row], or null
  int64_t mask_row;
  float factor;
  GradientSum outer;  // X^T S, with the strides row and col
  GradientSum inner;  // X B, contiguous
};

namespace gradient {
// The number of floats in a row of a part of X B: the ranks of a block, at most kRank, rounded up to a multiple of 4.
__host__ __device__ constexpr int inner_width(int rank, int kRank) {
  return ((rank < kRank ? rank : kRank) + 3) / 4 * 4;
}

// One launch. The caller has set X, S, B, rank, mask, factor and the outputs of p. `like` is a tensor on the same
// device.
void run(const OnDevice& on, GradientArgs p, const Tensor& like, bool wide, bool tf32);
}  // namespace gradient
}  // namespace pypeft
