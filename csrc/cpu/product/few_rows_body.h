// few_rows for every instruction set (for_each.h).
//
// A sum belongs to one row of `a` and one column of `b`: its lanes add up products along the rank, then along K, and
// are added to each other at the end.
#include "cpu/product/add_decoded_body.h"

template <class X, class T>
constexpr int64_t FEW_STEP = W;  // elements of a row that one step multiplies
#if defined(ISA_BF16)
template <>
constexpr int64_t FEW_STEP<BF16, BF16> = 2 * W;
#endif

// `n` elements from p, at most FEW_STEP; beyond them zeros.
template <class T>
PYPEFT_INLINE F few(const T* p, int64_t n) {
  return n >= W ? widen(p) : widen(p, n);
}

template <class X, class T>
PYPEFT_INLINE F add_dot(F sum, const X* x, const T* w, int64_t n) {
  return fma(few(x, n), few(w, n), sum);
}
#if defined(ISA_BF16)
template <>
PYPEFT_INLINE F add_dot(F sum, const BF16* x, const BF16* w, int64_t n) {
  const __mmask32 there = n >= 2 * W ? ~0u : ~(~0u << n);
  const __m512i a = _mm512_maskz_loadu_epi16(there, x), b = _mm512_maskz_loadu_epi16(there, w);
  return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// sum[i][j] += x[i] . w[j], vectors of K elements, ldx and ldw apart. STEPS products at a time are summed by
// themselves, and the low-rank part, which may be large from the start, is added last: see gemm_body.h.
template <class X, class T, int I, int J>
PYPEFT_INLINE void add_dots(F (&sum)[I][J], const X* x, int64_t ldx, const T* w, int64_t ldw, int64_t K) {
  constexpr int64_t STEP = FEW_STEP<X, T>, STEPS = 64 * STEP;
  int64_t k = 0;
  while (k < K) {
    F part[I][J] = {};
    const int64_t end = at_most(k + STEPS, K);
    for (; k + STEP <= end; k += STEP) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) __builtin_prefetch(w + (J + j) * ldw + k);  // the rows that come next
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) part[i][j] = add_dot<X, T>(part[i][j], x + i * ldx + k, w + j * ldw + k, STEP);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        if (k < end) part[i][j] = add_dot<X, T>(part[i][j], x + i * ldx + k, w + j * ldw + k, end - k);
        sum[i][j] += part[i][j];
      }
    }
    k = end;
  }
}

template <class T>
PYPEFT_INLINE float as_float(const T* p) {
  return widen(p, 1)[0];
}

// What a scale makes of such a tile's sums; out of line, since decoding mostly has none.
template <class T, int I, int J>
__attribute__((noinline)) void scale_tile(const FewArgs& a, float (&total)[I][J], int64_t m, int64_t n) {
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) {
      if (a.scale.z) narrow((T*)a.scale.z + (m + i) * a.N + n + j, F{} + total[i][j], 1);
      total[i][j] = total[i][j] * a.scale.factors[n + j] + (a.scale.shift ? a.scale.shift[n + j] : 0.0f);
    }
  }
}

// Rows [m, m + I) of y at columns [n, n + J). B: the dtype of b, or T of the result if that is spread codes.
template <class X, class B, class T, class P, int I, int J>
inline void few_tile(const FewArgs& a, int64_t m, int64_t n) {
  F low[I][J] = {}, sum[I][J] = {};
  if (a.r > 0) add_dots<float, P, I, J>(low, a.left + m * a.ldl, a.ldl, (const P*)a.right + n * a.ldr, a.ldr, a.r);
  if (!a.spread) {
    add_dots<X, B, I, J>(sum, (const X*)a.a + m * a.lda, a.lda, (const B*)a.b + (a.codes ? 0 : n * a.ldb), a.ldb, a.K);
  } else if (a.codes->format == Format::table4) {
    add_decoded<Format::table4>(sum, a.spread + m * a.K, *a.codes, n);
  } else if (a.codes->format == Format::int8) {
    add_decoded<Format::int8>(sum, a.spread + m * a.K, *a.codes, n);
  } else {
    add_decoded<Format::fp8>(sum, a.spread + m * a.K, *a.codes, n);
  }
  if (a.spread && !are_finite(sum)) add_scaled(sum, (const float*)a.a + m * a.lda, a.lda, *a.codes, n);
  float total[I][J];
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      total[i][j] = sum_lanes(sum[i][j]);
      if (a.r > 0) total[i][j] += sum_lanes(low[i][j]) * a.factor;  // a lane beyond the rank is 0; infinity * 0 is NaN
      if (a.bias) total[i][j] += as_float((const T*)a.bias + (n + j) * a.bias_step);
    }
  }
  if (a.scale.factors) scale_tile<T>(a, total, m, n);
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) narrow((T*)a.y + (m + i) * a.N + n + j, F{} + total[i][j], 1);
  }
}

template <class X, class B, class T, class P, int J>
inline void few_tiles(const FewArgs& a, int64_t n) {
  int64_t m = 0;
  for (; m + 4 <= a.M; m += 4) few_tile<X, B, T, P, 4, J>(a, m, n);
  for (; m + 2 <= a.M; m += 2) few_tile<X, B, T, P, 2, J>(a, m, n);
  if (m < a.M) few_tile<X, B, T, P, 1, J>(a, m, n);
}

// room: [FEW_COLUMNS, K], for rows of the weight that are decoded beforehand.
template <class X, class B, class T, class P>
inline void few_columns_of(FewArgs a, float* room, int64_t n, int64_t end) {
  for (; n < end;) {
    const int columns = end - n >= FEW_COLUMNS ? FEW_COLUMNS : 1;
    if (a.codes && !a.spread) {
      for (int j = 0; j < columns; ++j) decode_row(*a.codes, n + j, 0, a.K, room + j * a.K);
      a.b = room, a.ldb = a.K;
    }
    if (columns > 1) {
      few_tiles<X, B, T, P, FEW_COLUMNS>(a, n);
    } else {
      few_tiles<X, B, T, P, 1>(a, n);
    }
    n += columns;
  }
}

template <class T>
inline void few_columns_half(const FewArgs& a, float* room, int64_t begin, int64_t end) {
  if (a.b_dtype == Dtype::f32) return few_columns_of<T, float, float, float>(a, room, begin, end);
  if (a.right_dtype == Dtype::f32) return few_columns_of<T, T, T, float>(a, room, begin, end);
  few_columns_of<T, T, T, T>(a, room, begin, end);
}

// Of float rows times a quantised weight, into T.
template <class T>
inline void few_columns_decoded(const FewArgs& a, float* room, int64_t begin, int64_t end) {
  if (a.right_dtype == Dtype::f32) return few_columns_of<float, float, T, float>(a, room, begin, end);
  few_columns_of<float, float, T, T>(a, room, begin, end);
}

// Columns [begin, end) of y.
inline void few_columns(const FewArgs& a, float* room, int64_t begin, int64_t end) {
  if (a.codes && a.b_dtype == Dtype::bf16) return few_columns_decoded<BF16>(a, room, begin, end);
  if (a.codes && a.b_dtype == Dtype::f16) return few_columns_decoded<F16>(a, room, begin, end);
  if (a.a_dtype == Dtype::bf16) return few_columns_half<BF16>(a, room, begin, end);
  if (a.a_dtype == Dtype::f16) return few_columns_half<F16>(a, room, begin, end);
  few_columns_of<float, float, float, float>(a, room, begin, end);
}
