// segmented_gradient() for every instruction set (for_each.h).
#include "cpu/transpose_out_body.h"

// Computes columns [n, n + GRADIENT_COLUMNS) of the gradient of one adapter.
template <class T, class P>
inline void gradient_strip(const SegmentGradientArgs& a, const RowBlock& block, int64_t n, float* few, int64_t ld,
                           float* sums) {
  alignas(64) float tile[MOST_BLOCK_ROWS * GRADIENT_COLUMNS];
  const Adapter& adapter = a.adapters[block.adapter];
  const int64_t columns = at_most(GRADIENT_COLUMNS, a.N - n), r = adapter.r;
  if (block.count == 0) multiply({}, tile, 0, r, columns, 0, sums, GRADIENT_COLUMNS, false);
  for (int64_t i = 0; i < block.count; i += MOST_BLOCK_ROWS) {
    const int64_t count = at_most(MOST_BLOCK_ROWS, block.count - i);
    for (int64_t e = 0; e < count; ++e) {
      const int64_t m = a.order[block.first + i + e];
      const uint8_t* mask = adapter.drops ? a.mask + m * a.mask_row + n / 8 : nullptr;
      stage(tile + e * GRADIENT_COLUMNS, 0, (const T*)a.right + m * a.ldr + n, 0, mask, 0, 1, columns);
      __builtin_memcpy(few + e * ld, a.left + m * a.R, r * sizeof(float));
    }
    multiply({few, 1, ld}, tile, GRADIENT_COLUMNS, r, columns, count, sums, GRADIENT_COLUMNS, i > 0);
  }
  P* out = (P*)a.out[block.adapter];
  if (a.transposed) return transpose_out(out + n * r, sums, GRADIENT_COLUMNS, adapter.factor, columns, r);
  for (int64_t j = 0; j < r; ++j) narrow_row(out + j * a.N + n, sums + j * GRADIENT_COLUMNS, adapter.factor, columns);
}

template <class T, class P>
inline void segment_gradient_of(const SegmentGradientArgs& a, float* few, int64_t ld, float* sums, int64_t begin,
                                int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    gradient_strip<T, P>(a, a.blocks[task / a.across], task % a.across * GRADIENT_COLUMNS, few, ld, sums);
  }
}

// Runs tasks [begin, end). A task is a strip of the gradient of one adapter. few is memory for MOST_BLOCK_ROWS rows of
// `left`, which are ld apart; sums is memory for [R, GRADIENT_COLUMNS].
inline void segment_gradient(const SegmentGradientArgs& a, float* few, int64_t ld, float* sums, int64_t begin,
                             int64_t end) {
  if (a.dtype == Dtype::f32) return segment_gradient_of<float, float>(a, few, ld, sums, begin, end);
  if (a.dtype == Dtype::bf16) {
    if (a.out_dtype == Dtype::f32) return segment_gradient_of<BF16, float>(a, few, ld, sums, begin, end);
    return segment_gradient_of<BF16, BF16>(a, few, ld, sums, begin, end);
  }
  if (a.out_dtype == Dtype::f32) return segment_gradient_of<F16, float>(a, few, ld, sums, begin, end);
  segment_gradient_of<F16, F16>(a, few, ld, sums, begin, end);
}
