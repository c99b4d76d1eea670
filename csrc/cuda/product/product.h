// The product with the frozen weight and what is done to its operands and sums on the way, one launch:
//
//   z = (X o inputs.factors) W^T + factor * keep o (S L^T) + bias,   out = z o epilogue.scale.factors
//
//   lora_linear  X = x, W = weight [N, K],    S = s,  L = lora_B [N, r],     factor = scaling; bias; of DoRA a scale
//   lora_dx      X = dY, W = weight^T [K, N], S = dS, L = lora_A^T [K, r],   factor = dropout's scale, mask
//   ia3_linear   X = x, W = weight [N, K]     l scales z or, feedforward, x; bias
//   ia3_dx_dl    X = dY, W = weight^T [K, N]  l scales dY or, feedforward, z; its gradient
//
// product.cu chooses the kernel: decode.cu's for few rows, decode_codes.cu's where W is quantised besides, else one of
// gemm.cuh's.
#pragma once
#include "cuda/device/matrix.h"
#include "cuda/frozen/codes.h"
#include "cuda/sums/column_sum.h"

namespace pypeft {

// Factors on the columns of a matrix, those of X or of z.
struct ColumnScale {
  bool present;
  Matrix factors;      // [1, columns]
  ColumnSum gradient;  // of the matrix before it is scaled, times gradient.by
};

struct LowRank {
  Matrix S, L;  // [M, r], [N, r]; r = 0: none
  float factor;
  const uint8_t* mask;  // [M, mask_row], packed bits, or null
  int64_t mask_row;
};

// What becomes of the sums before they are stored.
struct Epilogue {
  const void* bias;  // [N] of out's dtype, or null
  int64_t bias_stride;
  bool bias_last;  // the bias is added to what the factors have scaled, and is no part of z
  ColumnScale scale;
  void* z;  // [M, N], contiguous, of out's dtype: where z goes as well; or null
};

// There is a scale on X, on z or on neither; a low-rank product not beside one on X, a mask not beside one on z.
struct ProductArgs {
  Matrix X, W;  // [M, K], [N, K], one dtype, which is out's
  Codes codes;  // of a W that is read as it is stored: W.data are codes then; else codes.data is null
  ColumnScale inputs;
  LowRank low_rank;
  Epilogue epilogue;
  void* out;  // [M, N], contiguous, or null if a gradient of factors is all that is asked for
};

// M >= 1. X is a tensor of the device whose stream `on` holds.
void product(const OnDevice& on, ProductArgs args, const Tensor& X, bool allow_tf32);

}  // namespace pypeft
