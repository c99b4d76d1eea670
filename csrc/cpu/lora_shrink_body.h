// lora_shrink for every instruction set (for_each.h).
#include "cpu/philox_body.h"

constexpr int64_t SHRINK_COLUMNS = 256;              // columns of a tile of x; 16 such rows fit into the L1 cache
constexpr int64_t SHRINK_LD = SHRINK_COLUMNS + PAD;  // not a power of two, so that rows fall into different cache sets

// Computes the mask of rows [m, m + rows) at once, because its bytes are consecutive across rows.
inline void draw_mask(const ShrinkArgs& a, const Philox& stream, int64_t m, int64_t rows) {
  uint8_t* mask = a.mask + m * a.mask_row;
  philox_mask(stream, (uint64_t)m * a.mask_row, rows * a.mask_row, mask);
  if (a.K % 8 == 0) return;
  const uint8_t inside = (uint8_t)((1 << a.K % 8) - 1);
  for (int64_t i = 0; i < rows; ++i) mask[(i + 1) * a.mask_row - 1] &= inside;
}

// Computes the mask alone, for blocks [begin, end) of SHRINK_ROWS rows.
inline void draw_rows(const ShrinkArgs& a, int64_t begin, int64_t end) {
  const int64_t m = begin * SHRINK_ROWS;
  draw_mask(a, philox(a.seed, a.threshold), m, at_most(end * SHRINK_ROWS, a.M) - m);
}

template <class T, class S>
inline void shrink_rows_of(const ShrinkArgs& a, float* sums, int64_t begin, int64_t end) {
  alignas(64) float tile[SHRINK_ROWS * SHRINK_LD];
  const Philox stream = philox(a.seed, a.threshold);
  for (int64_t m = begin * SHRINK_ROWS; m < at_most(end * SHRINK_ROWS, a.M); m += SHRINK_ROWS) {
    const int64_t rows = at_most(SHRINK_ROWS, a.M - m);
    if (a.mask) draw_mask(a, stream, m, rows);
    int64_t k = 0;
    do {  // runs once if K is 0, and sets the sums to 0
      const int64_t columns = at_most(SHRINK_COLUMNS, a.K - k);
      const uint8_t* mask = a.mask ? a.mask + m * a.mask_row + k / 8 : nullptr;
      stage(tile, SHRINK_LD, (const T*)a.x + m * a.ldx + k, a.ldx, mask, a.mask_row, rows, columns);
      multiply({tile, SHRINK_LD, 1}, a.At + k * a.ld, a.ld, rows, a.r, columns, sums, a.ld, k > 0);
    } while ((k += SHRINK_COLUMNS) < a.K);
    for (int64_t i = 0; i < rows; ++i) narrow_row((S*)a.s + (m + i) * a.lds, sums + i * a.ld, a.scale, a.r);
  }
}

// Computes blocks [begin, end) of SHRINK_ROWS rows; sums is memory for [SHRINK_ROWS, a.ld].
inline void shrink_rows(const ShrinkArgs& a, float* sums, int64_t begin, int64_t end) {
  if (a.x_dtype == Dtype::f32) return shrink_rows_of<float, float>(a, sums, begin, end);
  if (a.x_dtype == Dtype::bf16) {
    if (a.s_dtype == Dtype::f32) return shrink_rows_of<BF16, float>(a, sums, begin, end);
    return shrink_rows_of<BF16, BF16>(a, sums, begin, end);
  }
  if (a.s_dtype == Dtype::f32) return shrink_rows_of<F16, float>(a, sums, begin, end);
  shrink_rows_of<F16, F16>(a, sums, begin, end);
}
