// The product for at most 16 rows of X, as in decoding. The kernel is bound by the read of W.
#pragma once
#include "cuda/product/product.h"

namespace pypeft {

constexpr int kDecodeRows = 16;

// Whether decode() accepts these arguments: few rows, no mask, no gradient, and rows of X and W in loads of 16 bytes.
inline bool decodes(const ProductArgs& p) {
  return p.X.rows <= kDecodeRows && !p.low_rank.mask && !p.inputs.gradient.out && !p.epilogue.scale.gradient.out &&
         p.X.vectors && p.W.vectors;
}

void decode(const OnDevice& on, const ProductArgs& args, bool allow_tf32);

constexpr int kCodesPerLoad = 32;  // 4-bit codes in 16 bytes

// Whether decode_codes() accepts these arguments: W is 4-bit, its rows are whole loads of 16 bytes, and all codes of a
// load have one scale.
inline bool decodes_codes(const ProductArgs& p) {
  const Codes& c = p.codes;
  return decodes(p) && is_four_bit(c.format) && c.vectors && c.K % kCodesPerLoad == 0 && 1 << c.shift >= kCodesPerLoad;
}

void decode_codes(const OnDevice& on, const ProductArgs& args, bool allow_tf32);

}  // namespace pypeft
