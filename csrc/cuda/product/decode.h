// The product for at most 16 rows of X, as in decoding: the time is that of reading W.
#pragma once
#include "cuda/product/product.h"

namespace pypeft {

constexpr int kDecodeRows = 16;

// Few rows, no mask, no gradient, and 16-byte loads all along the rows of X and W.
inline bool decodes(const ProductArgs& p) {
  return p.X.rows <= kDecodeRows && !p.low_rank.mask && !p.inputs.gradient.out && !p.epilogue.scale.gradient.out &&
         p.X.vectors && p.W.vectors;
}

void decode(const OnDevice& on, const ProductArgs& args, bool allow_tf32);

// The same with a quantised W: codes of four bits, whose rows are whole loads of 16 bytes, and a load has one scale.
constexpr int kCodesPerLoad = 32;

inline bool decodes_codes(const ProductArgs& p) {
  const Codes& c = p.codes;
  return decodes(p) && is_four_bit(c.format) && c.vectors && c.K % kCodesPerLoad == 0 && 1 << c.shift >= kCodesPerLoad;
}

void decode_codes(const OnDevice& on, const ProductArgs& args, bool allow_tf32);

}  // namespace pypeft
