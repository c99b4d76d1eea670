// The product with the frozen weight, with its prologue and epilogue, in one launch:
//
//   z = (X o inputs.factors) W^T + factor * keep o (S L^T) + bias,   out = z o epilogue.scale.factors
//
//   lora_linear  X = x, W = weight [N, K],    S = s,  L = lora_B [N, r],     factor = scaling; bias; for DoRA a scale
//   lora_dx      X = dY, W = weight^T [K, N], S = dS, L = lora_A^T [K, r],   factor = scale of dropout; mask
//   ia3_linear   X = x, W = weight [N, K]     l scales z, or x if feedforward; bias
//   ia3_dx_dl    X = dY, W = weight^T [K, N]  l scales dY, or z if feedforward; gradient of l
//
// product.cu chooses the kernel: decode.cu for few rows, decode_codes.cu for few rows and a 4-bit W, otherwise
// gemm.cuh.
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/frozen/codes.h"
#include "cuda/sums/column_sum.h"

namespace pypeft {

// Factors on the columns of a matrix, which is X or z.
struct ColumnScale {
  bool present;
  Matrix factors;      // [1, columns]
  ColumnSum gradient;  // the gradient of the factors: column sums of the unscaled matrix times gradient.by
};

struct LowRank {
  Matrix S, L;  // [M, r], [N, r]; r = 0: none
  float factor;
  const uint8_t* mask;  // [M, mask_row], packed bits, or null
  int64_t mask_row;
  bool overlaps;  // S is stored by the launch just before, which the kernel may overlap with; only decoding does
};

// The operations on the sums before they are stored.
struct Epilogue {
  const void* bias;  // [N] in the dtype of out, or null
  int64_t bias_stride;
  bool bias_last;  // the bias is added after the scale, and is not part of z
  ColumnScale scale;
  void* z;  // [M, N], contiguous, in the dtype of out: z is stored here; or null
};

// At most one of X and z has a scale. With a scale on X there is no low-rank product; with a scale on z there is no
// mask.
struct ProductArgs {
  Matrix X, W;  // [M, K], [N, K], both in the dtype of out
  Codes codes;  // of a quantised W that the kernel decodes, where W.data is codes.data; otherwise codes.data is null
  ColumnScale inputs;
  LowRank low_rank;
  Epilogue epilogue;
  void* out;  // [M, N], contiguous, or null if only the gradient of factors is needed
};

// M >= 1. X is a tensor on the device of `on`.
void product(const OnDevice& on, ProductArgs args, const Tensor& X, bool allow_tf32);

}  // namespace pypeft
