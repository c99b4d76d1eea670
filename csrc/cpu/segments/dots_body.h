// Dot products of staged rows with the rows of a matrix, which is not transposed first.

// out[i][j] = x[i] . w[j]. The rows of x are floats, padded with zeros to a multiple of W; the rows of w have n
// elements. next: rows like those of w that are read next, for the CPU to fetch; its own prefetcher stops at every
// page.
template <class P, int I, int J>
PYPEFT_INLINE void dots(const float* x, int64_t ldx, const P* w, int64_t ldw, int64_t n, const P* next,
                        float (&out)[I][J]) {
  constexpr int64_t STEPS = 64 * W;  // sums of partial sums have smaller rounding errors than one long sum
  F sum[I][J] = {};
  for (int64_t k = 0; k < n;) {
    F part[I][J] = {};
    const int64_t end = at_most(k + STEPS, n);
    for (; k < end; k += W) {
      const bool whole = k + W <= end;
      F right[J];
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        __builtin_prefetch(next + j * ldw + k);
        right[j] = whole ? widen(w + j * ldw + k) : widen(w + j * ldw + k, end - k);
      }
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) {
        const F left = load(x + i * ldx + k);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) part[i][j] = fma(left, right[j], part[i][j]);
      }
    }
    k = end;
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] += part[i][j];
    }
  }
  sum_all_lanes(out, sum);
}
