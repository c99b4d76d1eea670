// The shape of a frozen weight [N, K] and of its blocks of scales, from its tensors. pypeft_fast/frozen/formats.py
// defines the tensors of each format.
#pragma once
#include <string>

#include "fits.h"

namespace pypeft {

struct Stored {
  int64_t N, K;
  // nf4 and fp4: each block of 1 << shift consecutive weights has one scale; a block may span rows. If `nested` is set,
  // the scales are codes, of which each block of 1 << NESTED_SHIFT has one scale.
  int shift;
  bool nested;
  // int8 and fp8: each block of scale_rows x scale_columns weights has one scale; a row has scales_across scales.
  int64_t scale_rows, scale_columns, scales_across;
};

constexpr int NESTED_SHIFT = 8, LARGEST_SHIFT = 16;  // of the block sizes in pypeft_fast/frozen/four_bit.py
constexpr int64_t FP8_BLOCK = 128;

inline bool is_four_bit(const std::string& format) { return format == "nf4" || format == "fp4"; }

// log2 of the block size, for `weights` weights with `blocks` scales; the block size is a power of two.
inline int shift_of(int64_t weights, int64_t blocks) {
  int shift = 4;
  while (shift < LARGEST_SHIFT && ceil_div(weights, int64_t{1} << shift) > blocks) ++shift;
  fits(ceil_div(weights, int64_t{1} << shift) == blocks);
  return shift;
}

inline bool is_packed(const Tensor& t, const Tensor& weight, ScalarType type) {
  return beside(t, weight) && t.scalar_type() == type && t.is_contiguous();
}

inline void four_bit_blocks(Stored& its, const Tensor& weight, const std::vector<Tensor>& scales) {
  const int64_t weights = its.N * its.K;
  fits(is_packed(weight, weight, ScalarType::Byte) && weight.numel() == ceil_div(weights, 2));
  its.nested = scales.size() == 4;
  fits(its.nested || scales.size() == 1);
  const Tensor& absmax = scales[0];
  fits(is_packed(absmax, weight, its.nested ? ScalarType::Byte : ScalarType::Float));
  its.shift = shift_of(weights, absmax.numel());
  if (!its.nested) return;
  for (size_t i = 1; i < scales.size(); ++i) fits(is_packed(scales[i], weight, ScalarType::Float));
  fits(scales[1].numel() == ceil_div(absmax.numel(), int64_t{1} << NESTED_SHIFT));
  fits(scales[2].numel() == 256 && scales[3].numel() == 1);
}

inline void eight_bit_blocks(Stored& its, const Tensor& weight, const std::vector<Tensor>& scales, bool is_fp8) {
  fits(is_matrix(weight) && weight.size(0) == its.N && weight.size(1) == its.K && scales.size() == 1);
  const Tensor& scale = scales[0];
  fits(is_packed(weight, weight, is_fp8 ? ScalarType::Float8_e4m3fn : ScalarType::Char) &&
       is_packed(scale, weight, ScalarType::Float));
  its.scale_rows = 1, its.scale_columns = std::max<int64_t>(1, its.K), its.scales_across = 1;
  const int64_t down = ceil_div(its.N, FP8_BLOCK), across = ceil_div(its.K, FP8_BLOCK);
  if (is_fp8 && scale.numel() == 1) {
    its.scale_rows = std::max<int64_t>(1, its.N);
  } else if (is_fp8 && is_matrix(scale) && scale.size(0) == down && scale.size(1) == across) {
    its.scale_rows = its.scale_columns = FP8_BLOCK, its.scales_across = across;
  } else {
    fits(scale.numel() == its.N && (!is_fp8 || scale.dim() == 1 || (is_matrix(scale) && scale.size(1) == 1)));
  }
}

// The shape that these tensors store; without a format the weight is dense, of any strides. N and K are needed for
// 4-bit formats, whose codes do not give the shape; one of N and K may be -1. Throws std::runtime_error if the tensors
// do not fit or a storage is too small; the Python check of the op then raises the full error.
inline Stored stored(const char* op, const Tensor& weight, const std::optional<std::string>& format,
                     const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K) {
  check_storages(op, "weight", weight);
  Stored its{N, K, 0, false, 0, 0, 0};
  if (!format) {
    fits(is_matrix(weight) && !scales);
    its.N = weight.size(0), its.K = weight.size(1);
    return its;
  }
  fits(scales.has_value());
  for (const Tensor& scale : *scales) check_storages(op, "scales", scale);
  const bool four_bit = is_four_bit(*format), is_fp8 = *format == "fp8";
  fits(four_bit || is_fp8 || *format == "int8");
  if (!four_bit && is_matrix(weight)) {
    its.N = weight.size(0), its.K = weight.size(1);
  } else {
    const int64_t weights = 2 * weight.numel();  // one too many if the number of weights is odd
    if (N < 0) its.N = weights / std::max<int64_t>(1, K);
    fits((N >= 0 || K > 1) && (K >= 0 || N > 1));  // one row may have this many weights or one less, no row any number
    if (K < 0) its.K = weights / N;
  }
  four_bit ? four_bit_blocks(its, weight, *scales) : eight_bit_blocks(its, weight, *scales, is_fp8);
  return its;
}

}  // namespace pypeft
