// out = X W^T + factor * keep o (S L^T) + bias: the frozen product and the low-rank one in one accumulator.
//
//   lora_linear  X = x, W = weight [N, K],    S = s,  L = lora_B [N, r],        factor = scaling, bias
//                or, of DoRA, out = z o l + bias, z = X W^T + factor S L^T
//   lora_dx      X = dY, W = weight^T [K, N], S = dS, L = lora_A^T [K, r],      factor = dropout's scale, mask
//
// Without a low-rank product, and with l on the columns of one side, IA3 and its backward:
//
//   ia3_linear   X = x, W = weight [N, K]:     out = z o l, z = X W^T + bias, or out = (X o l) W^T + bias
//   ia3_dx_dl    X = dY, W = weight^T [K, N]:  out = (X o l) W^T, dl = the sum over rows of X o z,
//                                           or out = (X W^T) o l, dl = that of (X W^T) o x
#pragma once
#include "cuda/matrix.h"

namespace pypeft {

enum class Scale : int { none, inputs, outputs };  // on what l lies: the columns of X, or those of out

struct ScaleArgs {
  Scale on;
  Matrix l;        // [1, columns of X or of out]
  bool bias_last;  // outputs: the bias is added to what l has scaled, and is no part of z
  void* z;         // outputs: what l scales, [M, N], laid out as out, or null
  // IA3's backward:
  Matrix saved;  // that dl is summed with: z [M, columns of X] or x [M, columns of out]
  float* parts;  // of dl, [cut_rows or rows of tiles, columns], or null
  int span;      // inputs: rows of X in a part
  int blocks;    // inputs: of the launch, the last so many make the parts
};

struct GemmArgs {
  Matrix X, W;  // [M, K], [N, K], one dtype, which is out's
  Matrix S, L;  // [M, r], [N, r]; r = 0 for no low-rank product, and where l lies on the inputs
  float factor;
  const uint8_t* mask;  // [M, mask_row] packed bits on S L^T, or null; null where l lies on the outputs
  int64_t mask_row;
  const void* bias;  // [N], or null
  int64_t bias_stride;
  void* out;         // [M, N], contiguous, or null if only dl is asked for
  bool out_vectors;  // its rows start at multiples of 16 bytes
  ScaleArgs scale;
};

void gemm(const OnDevice& on, const GemmArgs& args, bool allow_tf32);

// Scale::outputs: the rows of a tile of out, and so of a part of dl.
int tile_rows(const OnDevice& on, const GemmArgs& args);

// Scale::inputs: cuts the rows of X into parts of dl: fills in span and blocks, and returns how many parts.
int cut_rows(const OnDevice& on, GemmArgs& args);

}  // namespace pypeft
