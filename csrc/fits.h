// Argument checks for ops that are called without their Python check: they take one microsecond instead of ten. A check
// only accepts or refuses. After a refusal the Python check of the op raises the full error (Op.__call__ in
// pypeft_fast/_op.py).
#pragma once
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "tensors.h"

namespace pypeft {

inline void fits(bool yes) {
  if (!yes) throw std::runtime_error("pypeft_fast: the arguments do not fit");
}

inline bool is_matrix(const Tensor& t) { return t.dim() == 2; }

inline bool is_activation(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

// Whether t is on the device of x. PyTorch calls a kernel for CPUs only if no argument is on another device, and a
// kernel for GPUs only if every argument is on a GPU or on the CPU, whose index is -1. So the indices tell the devices.
inline bool beside(const Tensor& t, const Tensor& x) { return t.get_device_index() == x.get_device_index(); }

inline bool like(const Tensor& t, const Tensor& x) { return beside(t, x) && t.scalar_type() == x.scalar_type(); }

// An adapter has the dtype of the activations, or is float32 over a half-precision base.
inline bool is_adapter(const Tensor& t, const Tensor& x) {
  const ScalarType type = t.scalar_type();
  return beside(t, x) && (type == ScalarType::Float || type == x.scalar_type());
}

inline bool is_probability(double p) { return p >= 0 && p < 1 && std::nearbyint(p * 65536) <= 65535; }

// The packed mask of dropout with probability p, of a matrix [rows, columns] beside x; of any shape if p is 0.
inline bool is_mask(const Tensor& t, const Tensor& x, double p, int64_t rows, int64_t columns) {
  if (!beside(t, x) || t.scalar_type() != ScalarType::Byte || !is_probability(p)) return false;
  return p == 0 || (is_matrix(t) && t.size(0) == rows && t.size(1) == (columns + 7) / 8);
}

inline bool same_shape(const Tensor& t, const Tensor& other) {
  bool same = t.dim() == other.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == other.size(d);
  return same;
}

// The number of rows of t [.., K]: the product of all sizes but the last.
inline int64_t rows_of(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  return rows;
}

// t [.., K] as [M, K]: a view if the strides allow a view, otherwise a copy.
inline Tensor as_rows(const Tensor& t) {
  if (t.dim() == 2) return t;
  const int64_t sizes[] = {rows_of(t), t.size(-1)}, strides[] = {sizes[1], 1};
  return t.is_contiguous() ? reinterpreted(t, 2, sizes, strides) : torch::stable::reshape(t, {sizes[0], sizes[1]});
}

// `result` [M, n] as [.., n], with the leading sizes of `like` [.., k]; a view.
inline Tensor in_shape_of(const Tensor& like, const Tensor& result) {
  const int64_t dims = like.dim();
  if (dims == 2) return result;
  std::vector<int64_t> sizes(dims, result.size(1)), strides(dims, result.stride(1));
  int64_t step = result.stride(0);
  for (int64_t d = dims - 2; d >= 0; --d) {
    sizes[d] = like.size(d), strides[d] = step;
    step *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return reinterpreted(result, dims, sizes.data(), strides.data());  // autograd does not treat the result as a view
}

}  // namespace pypeft
