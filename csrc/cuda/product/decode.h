// The product for at most 16 rows of X, as in decoding. The kernel is bound by the read of W.
#pragma once
#include "cuda/product/product.h"
#include "cuda/segments/adapters.h"

namespace pypeft {

constexpr int kDecodeRows = 16;

// A product whose rows have low-rank matrices L and factors of their own, those of their adapters: low_rank has only S,
// which is 0 from the rank of a row on. There is no mask, and no factor on X or z.
struct SegmentedProductArgs : ProductArgs {
  Adapters adapters;
};

// Whether decode() accepts these arguments: few rows, no mask, no gradient, and rows of X and W in loads of 16 bytes.
inline bool decodes(const ProductArgs& p) {
  return p.X.rows <= kDecodeRows && !p.low_rank.mask && !p.inputs.gradient.out && !p.epilogue.scale.gradient.out &&
         p.X.vectors && p.W.vectors;
}

void decode(const OnDevice& on, const ProductArgs& args, bool allow_tf32);

// At most kDecodeRows rows; X and W may have any strides.
void decode(const OnDevice& on, const SegmentedProductArgs& args, bool allow_tf32);

constexpr int kCodesPerLoad = 32;  // 4-bit codes in 16 bytes

// Whether decode_codes() accepts these arguments: W is 4-bit, its rows are whole loads of 16 bytes, and all codes of a
// load have one scale.
inline bool decodes_codes(const ProductArgs& p) {
  const Codes& c = p.codes;
  return decodes(p) && is_four_bit(c.format) && c.vectors && c.K % kCodesPerLoad == 0 && 1 << c.shift >= kCodesPerLoad;
}

void decode_codes(const OnDevice& on, const ProductArgs& args, bool allow_tf32);
void decode_codes(const OnDevice& on, const SegmentedProductArgs& args, bool allow_tf32);

}  // namespace pypeft
