// Copies small matrices to padded rows of float, for every instruction set (for_each.h).
template <class T>
inline void pack_rows_of(const PackArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float* to = a.to + i * a.ld;
    stage(to, 0, (const T*)a.from + i * a.stride, 0, nullptr, 0, 1, a.columns);
    for (int64_t k = 0; k < a.columns; k += W) store(to + k, load(to + k) * a.factor);
    for (int64_t k = round_up(a.columns, W); k < a.ld; k += W) store(to + k, F{});
  }
}

inline void pack_rows(const PackArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return pack_rows_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return pack_rows_of<BF16>(a, begin, end);
  pack_rows_of<F16>(a, begin, end);
}

// Computes rows [begin, end) of the result, in units of PAD rows.
template <class T>
inline void pack_transposed_of(const PackArgs& a, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t k = begin * PAD; k < at_most(end * PAD, a.columns); k += W) {
    const int64_t columns = at_most(W, a.columns - k);
    for (int64_t i = 0; i < a.ld; ++i) {
      const T* from = (const T*)a.from + i * a.stride + k;
      const F values = i >= rows ? F{} : (columns == W ? widen(from) : widen(from, columns)) * a.factor;
      for (int64_t j = 0; j < columns; ++j) a.to[(k + j) * a.ld + i] = values[j];
    }
  }
}

inline void pack_transposed(const PackArgs& a, int64_t rows, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return pack_transposed_of<float>(a, rows, begin, end);
  if (a.dtype == Dtype::bf16) return pack_transposed_of<BF16>(a, rows, begin, end);
  pack_transposed_of<F16>(a, rows, begin, end);
}
