// out = in * l and the parts of dl, for every instruction set (for_each.h).

// Columns [n, n + J * W) of the rows of one task, or with J = 1 the first `columns` <= W of them: one walk down the
// rows with the factors and the sums in registers.
template <class T, int J, bool WHOLE>
inline void scale_strip(const ScaleArgs& a, int64_t m, int64_t rows, int64_t n, int64_t columns, float* part) {
  F factor[J], sum[J] = {};
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) factor[j] = WHOLE ? load(a.ia3_l + n + j * W) : widen(a.ia3_l + n, columns);
  const T* in = (const T*)a.in + m * a.in_row + n;
  const T* saved = a.saved ? (const T*)a.saved + m * a.saved_row + n : nullptr;
  T* out = a.out ? (T*)a.out + m * a.out_row + n : nullptr;
  for (int64_t i = 0; i < rows; ++i, in += a.in_row) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const F value = WHOLE ? widen(in + j * W) : widen(in, columns);
      if (saved) sum[j] = fma(value, WHOLE ? widen(saved + j * W) : widen(saved, columns), sum[j]);
      if (out && WHOLE) narrow(out + j * W, value * factor[j]);
      if (out && !WHOLE) narrow(out, value * factor[j], columns);
    }
    if (saved) saved += a.saved_row;
    if (out) out += a.out_row;
  }
  if (saved) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) store(part + n + j * W, sum[j]);
  }
}

template <class T>
inline void scale_rows_of(const ScaleArgs& a, int64_t begin, int64_t end) {
  constexpr int J = 4;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t m = task * SCALE_ROWS, rows = at_most(SCALE_ROWS, a.M - m);
    float* part = a.parts + task * a.ld;
    int64_t n = 0;
    for (; n + J * W <= a.N; n += J * W) scale_strip<T, J, true>(a, m, rows, n, J * W, part);
    for (; n + W <= a.N; n += W) scale_strip<T, 1, true>(a, m, rows, n, W, part);
    if (n < a.N) scale_strip<T, 1, false>(a, m, rows, n, a.N - n, part);
  }
}

// Tasks of SCALE_ROWS rows.
inline void scale_rows(const ScaleArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::f32) return scale_rows_of<float>(a, begin, end);
  if (a.dtype == Dtype::bf16) return scale_rows_of<BF16>(a, begin, end);
  scale_rows_of<F16>(a, begin, end);
}

template <class P>
inline void combine_columns_of(const ScaleArgs& a, int64_t begin, int64_t end) {
  for (int64_t n = begin * PAD; n < at_most(end * PAD, a.N); n += W) {
    F sum = {};
    for (int64_t task = 0; task < a.tasks; ++task) sum += load(a.parts + task * a.ld + n);
    narrow((P*)a.dl + n, sum, at_most(W, a.N - n));
  }
}

// Columns [begin, end) of dl, in units of PAD, from the tasks' parts in their order.
inline void combine_columns(const ScaleArgs& a, int64_t begin, int64_t end) {
  if (a.dl_dtype == Dtype::f32) return combine_columns_of<float>(a, begin, end);
  if (a.dl_dtype == Dtype::bf16) return combine_columns_of<BF16>(a, begin, end);
  combine_columns_of<F16>(a, begin, end);
}
