// Rows of one batch that belong to different adapters: found by index, never gathered.
#pragma once
#include <vector>

#include "cpu/isa/types.h"
#include "cpu/tensors.h"

namespace pypeft {

constexpr int64_t MOST_BLOCK_ROWS = 64;  // of one adapter, that share what is staged of it

// Rows order[first .. first + count) of the batch, all of one adapter; -1: of none.
struct RowBlock {
  int64_t adapter, first, count;
};

// The rows of a batch by adapter, in each in the order of the batch.
struct Segments {
  std::vector<int64_t> order;     // [M]
  std::vector<RowBlock> adapters;  // one for each of the n adapters, those without rows too
  RowBlock none;                  // the rows of the base alone

  // The adapters' rows in blocks of at most `most`.
  std::vector<RowBlock> blocks(int64_t most) const;
};

// The widest rank of n adapters, A [r_a, K] and B [N, r_a] as the ops take them beside x; std::runtime_error if a
// matrix, a p or their number does not fit, or a storage is too small.
int64_t fit_adapters(const char* op, const Tensor& x, const std::vector<Tensor>& A, const std::vector<Tensor>& B,
                     const std::vector<double>& scalings, const std::vector<double>& ps, int64_t N, int64_t K);

// index int64 [M], each -1 .. n - 1; std::runtime_error if it is not.
Segments segments(const Tensor& index, int64_t M, int64_t n);

// What the kernels know of one adapter. `matrix` is its A or B, of dense rows.
struct Adapter {
  const void* matrix;
  int64_t ld, r;
  float factor;  // of what the kernel sums
  bool drops;
  uint16_t threshold;
  int64_t seed;
};

}  // namespace pypeft
