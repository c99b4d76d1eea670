// Fast argument checks, one microsecond instead of ten, for ops that are called without their Python check. They only
// accept or refuse; after a refusal the op's Python check raises the full error (Op.__call__ in pypeft_fast/_op.py).
#pragma once
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/tensors.h"

namespace pypeft {

inline void fits(bool yes) {
  if (!yes) throw std::runtime_error("pypeft_fast: the arguments do not fit");
}

inline bool is_matrix(const Tensor& t) { return t.dim() == 2; }

inline bool is_activation(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return t.is_cpu() && (type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half);
}

inline bool like(const Tensor& t, const Tensor& x) { return t.is_cpu() && t.scalar_type() == x.scalar_type(); }

// An adapter has the dtype of the activations, or is float32 over a half-precision base.
inline bool is_adapter(const Tensor& t, const Tensor& x) {
  return like(t, x) || (t.is_cpu() && t.scalar_type() == ScalarType::Float);
}

inline bool is_probability(double p) { return p >= 0 && p < 1 && std::nearbyint(p * 65536) <= 65535; }

// The packed mask of dropout with probability p, of a matrix [rows, columns]; of any shape if p is 0.
inline bool is_mask(const Tensor& t, double p, int64_t rows, int64_t columns) {
  if (!t.is_cpu() || t.scalar_type() != ScalarType::Byte || !is_probability(p)) return false;
  return p == 0 || (is_matrix(t) && t.size(0) == rows && t.size(1) == (columns + 7) / 8);
}

inline bool same_shape(const Tensor& t, const Tensor& other) {
  bool same = t.dim() == other.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == other.size(d);
  return same;
}

// M of [.., K].
inline int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  return rows;
}

// [.., K] as [M, K]: a view where the strides allow it.
inline Tensor as_rows(const Tensor& t) {
  return t.dim() == 2 ? t : torch::stable::reshape(t, {rows_of(t), t.size(-1)});
}

// The rows of `result` [M, n] as [.., n], in the shape that `like` [.., k] has.
inline Tensor in_shape_of(const Tensor& like, const Tensor& result) {
  const int64_t dims = like.dim();
  if (dims == 2) return result;
  std::vector<int64_t> sizes(dims, result.size(1)), strides(dims, result.stride(1));
  int64_t step = result.stride(0);
  for (int64_t d = dims - 2; d >= 0; --d) {
    sizes[d] = like.size(d), strides[d] = step;
    step *= sizes[d] > 0 ? sizes[d] : 1;
  }
  AtenTensorHandle shaped;  // no view to autograd
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(result.get(), dims, sizes.data(), strides.data(), 0, &shaped));
  return Tensor(shaped);
}

}  // namespace pypeft
