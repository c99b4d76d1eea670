// A quantised weight [N, K] as it is stored; pypeft_fast/frozen/formats.py says what the tensors of each format are.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cuda/device/launch.h"

namespace pypeft {

enum class Format : int { nf4, fp4, int8, fp8 };

constexpr bool is_four_bit(Format format) { return format == Format::nf4 || format == Format::fp4; }

// A weight is value(code) * scale, in float.
struct Codes {
  const uint8_t* data;  // four bits: two codes a byte, the first in its high half, without a gap between rows; or null
  bool vectors;         // data is a multiple of 16
  Format format;
  int64_t N, K, weights, bytes;
  // Of four bits a scale belongs to 1 << shift weights as they lie, whatever rows they are of. With `nested` that scale
  // is map[nested[block]] * scale[block >> kNestedShift] + *offset. Of int8 scale is [N] and 127 times it; of fp8 it
  // has one element for scale_rows x scale_columns weights, scales_across of them side by side.
  const float* scale;
  int shift;
  const uint8_t* nested;  // or null
  const float* map;
  const float* offset;
  int64_t scale_rows, scale_columns, scales_across;
};

constexpr int kNestedShift = 8;

// N or K may be -1: the tensors tell the other side. std::runtime_error if a storage is too small; the ops' checks have
// seen all else.
Codes codes_of(const char* op, const Tensor& weight, const std::string& format, const std::vector<Tensor>& scales,
               int64_t N, int64_t K);

// [N, K] in `dtype`, one launch. like: a tensor of the device.
Tensor dequantized(const OnDevice& on, const Codes& codes, const Tensor& like, ScalarType dtype);

}  // namespace pypeft
