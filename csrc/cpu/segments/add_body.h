// segmented_add() for every instruction set (for_each.h).
#include "cpu/product/add_row_body.h"
#include "cpu/segments/up_body.h"
#include "cpu/transpose_units_body.h"

constexpr int64_t STRIP_LD = ADD_STRIP + PAD;

// to[j][n] = from[n][j] for n < columns <= W and j < width <= W, and 0 for the other n < W.
template <class P>
PYPEFT_INLINE void stage_tile(float* to, const P* from, int64_t ld, int64_t width, int64_t columns) {
#if defined(ISA_AVX512)
  U rows[W];
#pragma GCC unroll 16
  for (int64_t n = 0; n < W; ++n) {
    const P* row = from + n * ld;
    rows[n] = (U)(n >= columns ? F{} : width == W ? widen(row) : widen(row, width));
  }
  transpose_units(rows);
  for (int64_t j = 0; j < width; ++j) store(to + j * STRIP_LD, (F)rows[j]);
#else
  for (int64_t n = 0; n < W; ++n) {
    const F row = n >= columns ? F{} : width == W ? widen(from + n * ld) : widen(from + n * ld, width);
    for (int64_t j = 0; j < width; ++j) to[j * STRIP_LD + n] = row[j];
  }
#endif
}

// to[j][n] = from[n][j] for from [columns, r], whose rows are ld apart; columns up to a multiple of W are set to 0.
template <class P>
inline void stage_transposed(float* to, const P* from, int64_t ld, int64_t r, int64_t columns) {
  for (int64_t j = 0; j < r; j += W) {
    for (int64_t n = 0; n < columns; n += W) {
      stage_tile(to + j * STRIP_LD + n, from + n * ld + j, ld, at_most(W, r - j), at_most(W, columns - n));
    }
  }
}

// Copies rows of `left` to rows that are ld apart and padded with zeros.
inline void gather_left(const SegmentAddArgs& a, const Adapter& adapter, const int64_t* rows, int64_t count, float* to,
                        int64_t ld) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < adapter.r; ++j) to[i * ld + j] = a.left[rows[i] * a.ldl + j];
    for (int64_t j = adapter.r; j < ld; ++j) to[i * ld + j] = 0;
  }
}

// A task: its rows and their adapter, its first column of y, and the part of the adapter's matrix for its columns,
// whose rows are columns of y if the matrix is [N, r].
template <class P>
struct AddTask {
  const RowBlock& block;
  const Adapter& adapter;
  int64_t n;
  Rows<P> part;
};

template <class P>
inline AddTask<P> add_task(const SegmentAddArgs& a, int64_t task) {
  const RowBlock& block = a.blocks[task / a.across];
  const Adapter& adapter = a.adapters[block.adapter];
  const int64_t n = task % a.across * a.strip;
  const P* first = (const P*)adapter.matrix + n * (a.transposed ? adapter.ld : 1);
  return {block, adapter, n, {first, adapter.ld, adapter.r, at_most(a.strip, a.N - n)}};
}

template <class T, class P>
inline void add_strip(const SegmentAddArgs& a, const AddTask<P>& task, Fetch next, float* right, float* few) {
  const auto& [block, adapter, n, part] = task;
  const P* matrix = part.first;
  const int64_t *rows = a.order + block.first, columns = part.columns, ld = padded(adapter.r);
  const bool turns = a.transposed && block.count > FEW_UP_ROWS;
  if (turns) stage_transposed(right, matrix, adapter.ld, adapter.r, columns);
  if (!a.transposed) stage(right, STRIP_LD, matrix, adapter.ld, nullptr, 0, adapter.r, columns);
  alignas(64) float sums[ADD_TILE_ROWS * ADD_STRIP];
  for (int64_t i = 0; i < block.count; i += ADD_TILE_ROWS) {
    const int64_t count = at_most(ADD_TILE_ROWS, block.count - i);
    gather_left(a, adapter, rows + i, count, few, ld);
    if (turns || !a.transposed) {
      multiply({few, ld, 1}, right, STRIP_LD, count, columns, adapter.r, sums, ADD_STRIP, false);
    } else {
      const int64_t readable = (a.N - n - 1) * adapter.ld + adapter.r;
      for (int64_t e = 0; e < count; ++e) {
        up_row(few + e * ld, part, readable, next, sums + e * ADD_STRIP);
      }
    }
    for (int64_t e = 0; e < count; ++e) {
      const int64_t m = rows[i + e];
      const uint8_t* mask = adapter.drops ? a.mask + m * a.mask_row + n / 8 : nullptr;
      add_row((T*)a.y + m * a.N + n, sums + e * ADD_STRIP, adapter.factor, mask, columns);
    }
  }
}

template <class T, class P>
inline void segment_add_of(const SegmentAddArgs& a, float* right, float* few, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const AddTask<P> task = add_task<P>(a, t);
    Fetch next;
    if (a.transposed && t + 1 < end) next = Fetch(add_task<P>(a, t + 1).part, ceil_div(task.part.columns, W));
    add_strip<T, P>(a, task, next, right, few);
  }
}

// Runs tasks [begin, end). A task is a strip of columns of y, for the rows of one adapter. right is memory for
// [R, STRIP_LD], and few is memory for ADD_TILE_ROWS rows of `left`.
inline void segment_add(const SegmentAddArgs& a, float* right, float* few, int64_t begin, int64_t end) {
  const bool wide = a.adapter_dtype == Dtype::f32;
  if (a.dtype == Dtype::f32) return segment_add_of<float, float>(a, right, few, begin, end);
  if (a.dtype == Dtype::bf16) {
    if (wide) return segment_add_of<BF16, float>(a, right, few, begin, end);
    return segment_add_of<BF16, BF16>(a, right, few, begin, end);
  }
  if (wide) return segment_add_of<F16, float>(a, right, few, begin, end);
  segment_add_of<F16, F16>(a, right, few, begin, end);
}
