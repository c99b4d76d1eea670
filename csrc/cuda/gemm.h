// out = X W^T + factor * keep o (S L^T) + bias: the frozen product and the low-rank one in one accumulator.
//
//   lora_linear  X = x, W = weight [N, K],    S = s,  L = lora_B [N, r],        factor = scaling, bias
//   lora_dx      X = dY, W = weight^T [K, N], S = dS, L = lora_A^T [K, r],      factor = dropout's scale, mask
#pragma once
#include "cuda/matrix.h"

namespace pypeft {

struct GemmArgs {
  Matrix X, W;  // [M, K], [N, K], one dtype, which is out's
  Matrix S, L;  // [M, r], [N, r]
  float factor;
  const uint8_t* mask;  // [M, mask_row] packed bits on S L^T, or null
  int64_t mask_row;
  const void* bias;  // [N], or null
  int64_t bias_stride;
  void* out;         // [M, N], contiguous
  bool out_vectors;  // its rows start at multiples of 16 bytes
};

void gemm(const OnDevice& on, const GemmArgs& args, bool allow_tf32);

}  // namespace pypeft
