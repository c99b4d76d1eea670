// The stored form of a frozen weight [N, K]; pypeft_fast/frozen/formats.py defines the tensors of each format.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cpu/isa/types.h"
#include "cpu/scratch.h"
#include "tensors.h"

namespace pypeft {

struct Stored;  // stored.h

enum class Format { dense, table4, int8, fp8 };  // table4: nf4 and fp4, which have different tables

// The codes and scales of a quantised weight. Each weight is value(code) * scale, computed in float.
struct Codes {
  Format format;
  const uint8_t* data;  // table4: two codes a byte, the first code in the high half; rows are packed
  int64_t N, K;
  const float* table;  // table4: [16]
  // table4: each block of 1 << shift consecutive weights has one scale; a block may span rows. If `nested` is set, the
  // scale of a block is map[nested[block]] * scale[block >> nested_shift] + offset. int8: scale [N] holds 127 times the
  // scale of each row. fp8: scale has one element for each block of 1 << row_shift rows and
  // 1 << column_shift columns, and scales_across elements in a row.
  const float* scale;
  int shift, nested_shift;
  const uint8_t* nested;
  const float* map;
  float offset;
  int row_shift, column_shift;
  int64_t scales_across;
};

struct Frozen {
  Format format;
  Tensor weight;  // dense: [N, K] of any strides
  int64_t N, K;
  std::vector<Tensor> scales;
  Codes codes;

  bool is_dense() const { return format == Format::dense; }
};

inline Frozen dense(const Tensor& t) { return {Format::dense, t, t.size(0), t.size(1), {}, {}}; }

// W, or W^T if `transposed`: the right operand [rows, columns] of a product.
struct Right {
  const Frozen& w;
  bool transposed;

  int64_t rows() const { return transposed ? w.K : w.N; }
  int64_t columns() const { return transposed ? w.N : w.K; }
  // Only for a dense weight.
  Tensor matrix() const { return transposed ? pypeft::transposed(w.weight) : w.weight; }
};

// The weight that these tensors store, whose shape `its` gives.
Frozen frozen(const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& scales, const Stored& its);
// As stored() with these arguments, and the weight above.
Frozen frozen(const char* op, const Tensor& weight, const std::optional<std::string>& format,
              const std::optional<std::vector<Tensor>>& scales, int64_t N, int64_t K);

// Decodes rows [n, n + rows) and columns [k, k + columns) of a quantised weight into `to`, whose rows are ld apart.
void decode(const Codes& codes, int64_t n, int64_t rows, int64_t k, int64_t columns, void* to, int64_t ld, Dtype dtype);

}  // namespace pypeft
