// gemm.h's product for at most 16 rows of X, as in decoding: the time is that of reading W.
#pragma once
#include "cuda/gemm.h"

namespace pypeft {

constexpr int kDecodeRows = 16;

// Few rows, no mask, and 16-byte loads all along the rows of X and W.
inline bool decodes(const GemmArgs& p) {
  return p.X.rows <= kDecodeRows && !p.mask && p.X.vectors && p.W.vectors && p.X.cols % (16 / bytes_of(p.X.dtype)) == 0;
}

void decode(const OnDevice& on, const GemmArgs& args, bool allow_tf32);

}  // namespace pypeft
