// segmented_shrink() for every instruction set (for_each.h).
#include "cpu/philox_body.h"
#include "cpu/segments/dots_body.h"

// Computes s for I staged rows. next: the matrix that is read next.
template <class P, int I>
inline void shrink_staged(const SegmentShrinkArgs& a, const Adapter& adapter, const float* staged, int64_t ld,
                          const int64_t* rows, const P* next) {
  constexpr int J = SHRINK_AT_ONCE;
  const P* A = (const P*)adapter.matrix;
  int64_t j = 0;
  for (; j + J <= adapter.r; j += J) {
    float sums[I][J];
    const P* after = j + 2 * J <= adapter.r ? A + (j + J) * adapter.ld : next;
    dots<P, I, J>(staged, ld, A + j * adapter.ld, adapter.ld, a.K, after, sums);
    for (int i = 0; i < I; ++i) {
      for (int e = 0; e < J; ++e) narrow((P*)a.s + rows[i] * a.R + j + e, F{} + sums[i][e] * adapter.factor, 1);
    }
  }
  for (; j < adapter.r; ++j) {
    float sums[I][1];
    dots<P, I, 1>(staged, ld, A + j * adapter.ld, adapter.ld, a.K, A + (j + 1) * adapter.ld, sums);
    for (int i = 0; i < I; ++i) narrow((P*)a.s + rows[i] * a.R + j, F{} + sums[i][0] * adapter.factor, 1);
  }
  for (int i = 0; i < I; ++i) __builtin_memset((P*)a.s + rows[i] * a.R + adapter.r, 0, (a.R - adapter.r) * sizeof(P));
}

// Computes the mask of row m, and copies the row as float with the dropped elements set to 0.
template <class T>
inline void stage_row(const SegmentShrinkArgs& a, bool drops, const Philox& stream, int64_t m, float* staged) {
  uint8_t* mask = a.mask ? a.mask + m * a.mask_row : nullptr;
  if (drops) {
    philox_mask(stream, (uint64_t)m * a.mask_row, a.mask_row, mask);
    if (a.K % 8) mask[a.mask_row - 1] &= (uint8_t)((1 << a.K % 8) - 1);
  } else if (mask) {
    __builtin_memset(mask, 0, a.mask_row);
  }
  stage(staged, 0, (const T*)a.x + m * a.ldx, 0, drops ? mask : nullptr, 0, 1, a.K);
}

template <class T, class P>
inline void segment_shrink_of(const SegmentShrinkArgs& a, float* staged, int64_t ld, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const RowBlock& block = a.blocks[b];
    const int64_t* rows = a.order + block.first;
    if (block.adapter < 0) {
      for (int64_t i = 0; i < block.count; ++i) {
        __builtin_memset((P*)a.s + rows[i] * a.R, 0, a.R * sizeof(P));
        if (a.mask) __builtin_memset(a.mask + rows[i] * a.mask_row, 0, a.mask_row);
      }
      continue;
    }
    const Adapter& adapter = a.adapters[block.adapter];
    const Philox stream = adapter.drops ? philox(adapter.seed, adapter.threshold) : Philox{};
    for (int64_t i = 0; i < block.count;) {
      const int64_t left = block.count - i, count = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t e = 0; e < count; ++e) stage_row<T>(a, adapter.drops, stream, rows[i + e], staged + e * ld);
      const bool is_last = i + count == block.count && b + 1 < end && a.blocks[b + 1].adapter >= 0;
      const P* next = (const P*)a.adapters[is_last ? a.blocks[b + 1].adapter : block.adapter].matrix;
      if (count == 4) shrink_staged<P, 4>(a, adapter, staged, ld, rows + i, next);
      if (count == 2) shrink_staged<P, 2>(a, adapter, staged, ld, rows + i, next);
      if (count == 1) shrink_staged<P, 1>(a, adapter, staged, ld, rows + i, next);
      i += count;
    }
  }
}

// Computes blocks [begin, end); staged is memory for SHRINK_AT_ONCE rows, which are ld apart.
inline void segment_shrink(const SegmentShrinkArgs& a, float* staged, int64_t ld, int64_t begin, int64_t end) {
  if (a.x_dtype == Dtype::f32) return segment_shrink_of<float, float>(a, staged, ld, begin, end);
  if (a.x_dtype == Dtype::bf16) {
    if (a.s_dtype == Dtype::f32) return segment_shrink_of<BF16, float>(a, staged, ld, begin, end);
    return segment_shrink_of<BF16, BF16>(a, staged, ld, begin, end);
  }
  if (a.s_dtype == Dtype::f32) return segment_shrink_of<F16, float>(a, staged, ld, begin, end);
  segment_shrink_of<F16, F16>(a, staged, ld, begin, end);
}
