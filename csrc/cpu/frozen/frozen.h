// A frozen weight [N, K] as it is stored; pypeft_fast/frozen/formats.py says what the tensors of each format are.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cpu/isa/types.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"

namespace pypeft {

enum class Format { dense, table4, int8, fp8 };  // table4: nf4 and fp4, which differ in their table

// What a quantised weight is decoded from. A weight is value(code) * scale, in float.
struct Codes {
  Format format;
  const uint8_t* data;  // table4: two codes a byte, the first one in its high half, without a gap between rows
  int64_t N, K;
  const float* table;  // table4: [16]
  // Of table4 a scale belongs to 1 << shift weights as they lie, whatever rows they are of. With `nested` that scale is
  // map[nested[block]] * scale[block >> nested_shift] + offset. Of int8 scale is [N] and 127 times it; of fp8 it has
  // one element for scale_rows x scale_columns weights, scales_across of them side by side.
  const float* scale;
  int shift, nested_shift;
  const uint8_t* nested;
  const float* map;
  float offset;
  int64_t scale_rows, scale_columns, scales_across;
};

struct Frozen {
  Format format;
  Tensor weight;  // dense: [N, K] of any strides
  int64_t N, K;
  std::vector<Tensor> scales;
  Codes codes;

  bool is_dense() const { return format == Format::dense; }
};

// W, or W^T if `transposed`: the right operand [rows, columns] of a product.
struct Right {
  const Frozen& w;
  bool transposed;

  int64_t rows() const { return transposed ? w.K : w.N; }
  int64_t columns() const { return transposed ? w.N : w.K; }
  // Of a dense weight.
  Tensor matrix() const { return transposed ? pypeft::transposed(w.weight) : w.weight; }
};

// The weight of these tensors, dense without a format; N and K count for table4, whose codes do not tell them; one may
// be -1 there. std::runtime_error if the tensors do not fit or a storage is too small; the op's check then raises the
// full error.
Frozen frozen(const char* op, const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K);

// Rows [n, n + rows) and columns [k, k + columns) of a quantised weight, decoded, in rows `ld` apart of `to`.
void decode(const Codes& codes, int64_t n, int64_t rows, int64_t k, int64_t columns, void* to, int64_t ld, Dtype dtype);

}  // namespace pypeft
