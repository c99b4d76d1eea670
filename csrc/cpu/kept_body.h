// kept() for every instruction set (for_each.h).
template <class T, class P>
inline void keep_rows_of(const KeptArgs& a, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const T* from = (const T*)a.from + m * a.row;
    const uint8_t* mask = a.mask ? a.mask + m * a.mask_row : nullptr;
    P* to = (P*)a.to + m * a.N;
    int64_t k = 0;
    for (; k + W <= a.N; k += W) {
      const F v = widen(from + k);
      narrow(to + k, mask ? keep(v, mask_bits(mask, k, W)) : v);
    }
    if (k < a.N) {
      const F v = widen(from + k, a.N - k);
      narrow(to + k, mask ? keep(v, mask_bits(mask, k, a.N - k)) : v, a.N - k);
    }
  }
}

inline void keep_rows(const KeptArgs& a, int64_t begin, int64_t end) {
  if (a.from_dtype == Dtype::f32) return keep_rows_of<float, float>(a, begin, end);
  if (a.from_dtype == Dtype::bf16) {
    if (a.to_dtype == Dtype::f32) return keep_rows_of<BF16, float>(a, begin, end);
    return keep_rows_of<BF16, BF16>(a, begin, end);
  }
  if (a.to_dtype == Dtype::f32) return keep_rows_of<F16, float>(a, begin, end);
  keep_rows_of<F16, F16>(a, begin, end);
}
