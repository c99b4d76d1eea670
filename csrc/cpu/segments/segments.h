// The rows of one batch that belong to different adapters. The rows are addressed by index and not gathered into new
// tensors.
#pragma once
#include <vector>

#include "cpu/isa/types.h"
#include "tensors.h"

namespace pypeft {

constexpr int64_t MOST_BLOCK_ROWS = 64;  // rows of one adapter that share the staged part of its matrix

// Rows order[first], ..., order[first + count - 1] of the batch; all belong to `adapter`, or to no adapter if it is -1.
struct RowBlock {
  int64_t adapter, first, count;
};

// The rows of a batch, grouped by adapter. The rows of an adapter are in the order of the batch.
struct Segments {
  std::vector<int64_t> order;      // [M]
  std::vector<RowBlock> adapters;  // one for each of the n adapters, with or without rows
  RowBlock none;                   // the rows without an adapter

  // The rows with an adapter, in blocks of at most `most` rows of one adapter.
  std::vector<RowBlock> blocks(int64_t most) const;
};

// The largest rank of n adapters A [r_a, K] and B [N, r_a] for activations x. Throws std::runtime_error if a matrix, a
// rate p or the number of any of them does not fit, or a storage is too small.
int64_t fit_adapters(const char* op, const Tensor& x, const std::vector<Tensor>& A, const std::vector<Tensor>& B,
                     const std::vector<double>& scalings, const std::vector<double>& ps, int64_t N, int64_t K);

// Groups the rows by index int64 [M]. Throws std::runtime_error if an element is not in -1 .. n - 1.
Segments segments(const Tensor& index, int64_t M, int64_t n);

// The arguments of a kernel for one adapter. `matrix` is A or B of the adapter, with contiguous rows.
struct Adapter {
  const void* matrix;
  int64_t ld, r;
  float factor;  // multiplies the sums of the kernel
  bool drops;
  uint16_t threshold;
  int64_t seed;
};

}  // namespace pypeft
