// The stored form of a quantised weight [N, K]; pypeft_fast/frozen/formats.py defines the tensors of each format.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cuda/device/launch.h"

namespace pypeft {

struct Stored;  // stored.h

enum class Format : int { nf4, fp4, int8, fp8 };

constexpr bool is_four_bit(Format format) { return format == Format::nf4 || format == Format::fp4; }

// Each weight is value(code) * scale, computed in float.
struct Codes {
  const uint8_t* data;  // null if there are no codes; two 4-bit codes a byte, the first in the high half, rows packed
  bool vectors;         // the address data is a multiple of 16
  Format format;
  int64_t N, K, weights, bytes;
  // 4-bit formats: each block of 1 << shift consecutive weights has one scale; a block may span rows. If `nested` is
  // set, the scale of a block is map[nested[block]] * scale[block >> kNestedShift] + *offset. int8: scale [N] holds 127
  // times the scale of each row. fp8: scale has one element for each block of scale_rows x scale_columns weights, and
  // scales_across elements in a row.
  const float* scale;
  int shift;
  const uint8_t* nested;  // or null
  const float* map;
  const float* offset;
  int64_t scale_rows, scale_columns, scales_across;
};

constexpr int kNestedShift = 8;

// The weight that these tensors store, whose shape `its` gives.
Codes codes_of(const Tensor& weight, const std::string& format, const std::vector<Tensor>& scales, const Stored& its);

// The weight [N, K] in `dtype`, contiguous, by one launch. `like` is a tensor on the same device.
Tensor dequantized(const OnDevice& on, const Codes& codes, const Tensor& like, ScalarType dtype);

}  // namespace pypeft
