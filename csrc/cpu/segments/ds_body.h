// segmented_ds() for every instruction set (for_each.h).
constexpr int64_t DS_LD = DS_COLUMNS + PAD;  // not a power of two, so that rows fall into different cache sets

template <class T, class P>
inline void segment_ds_of(const SegmentDsArgs& a, float* B, float* sums, int64_t begin, int64_t end) {
  alignas(64) float tile[MOST_BLOCK_ROWS * DS_LD];
  for (int64_t b = begin; b < end; ++b) {
    const RowBlock& block = a.blocks[b];
    const Adapter& adapter = a.adapters[block.adapter];
    const int64_t *rows = a.order + block.first, ld = padded(adapter.r);
    int64_t n = 0;
    do {  // runs once if N is 0, and sets dS to 0
      const int64_t columns = at_most(DS_COLUMNS, a.N - n);
      stage(B, ld, (const P*)adapter.matrix + n * adapter.ld, adapter.ld, nullptr, 0, columns, adapter.r);
      for (int64_t i = 0; i < block.count; ++i) {
        stage(tile + i * DS_LD, 0, (const T*)a.dY + rows[i] * a.ldy + n, 0, nullptr, 0, 1, columns);
      }
      multiply({tile, DS_LD, 1}, B, ld, block.count, adapter.r, columns, sums, ld, n > 0);
    } while ((n += DS_COLUMNS) < a.N);
    for (int64_t i = 0; i < block.count; ++i) {
      narrow_row(a.dS + rows[i] * a.R, sums + i * ld, adapter.factor, adapter.r);
    }
  }
}

// Computes blocks [begin, end). B and sums are memory for [DS_COLUMNS, ld] and [MOST_BLOCK_ROWS, ld], for the largest
// rank.
inline void segment_ds(const SegmentDsArgs& a, float* B, float* sums, int64_t begin, int64_t end) {
  const bool wide = a.adapter_dtype == Dtype::f32;
  if (a.dY_dtype == Dtype::f32) return segment_ds_of<float, float>(a, B, sums, begin, end);
  if (a.dY_dtype == Dtype::bf16) {
    if (wide) return segment_ds_of<BF16, float>(a, B, sums, begin, end);
    return segment_ds_of<BF16, BF16>(a, B, sums, begin, end);
  }
  if (wide) return segment_ds_of<F16, float>(a, B, sums, begin, end);
  segment_ds_of<F16, F16>(a, B, sums, begin, end);
}
