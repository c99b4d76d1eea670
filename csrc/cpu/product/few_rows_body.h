// few_rows for every instruction set (for_each.h).
//
// A sum belongs to one row of `a` and one column of `b`: its lanes add up products along K, and are added to each
// other at the end. The sum along the rank is made likewise, and added to it.
#include "cpu/product/decoded_dots_body.h"

// One step along two rows, of X and of T: STEP elements of each, of which those beyond `n` are zeros.
template <class X, class T>
struct Few {
  static constexpr int64_t STEP = W;
  template <class P>
  static PYPEFT_INLINE F load(const P* p, int64_t n) {
    return n >= W ? widen(p) : widen(p, n);
  }
  static PYPEFT_INLINE F add(F sum, F x, F w) { return fma(x, w, sum); }
};
#if defined(ISA_BF16)
template <>
struct Few<BF16, BF16> {
  static constexpr int64_t STEP = 2 * W;
  static PYPEFT_INLINE U load(const BF16* p, int64_t n) {
    if (n < STEP) return (U)_mm512_maskz_loadu_epi16(~(~0u << n), p);
    U pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    return pairs;
  }
  static PYPEFT_INLINE F add(F sum, U x, U w) { return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w); }
};
#endif

// sum[i][j] = x[i] . w[j], vectors of K elements, ldx and ldw apart. If FETCHES, the J rows after w are prefetched. Out
// of line, for a loop whose sums are all in registers.
template <bool FETCHES, class X, class T, int I, int J>
__attribute__((noinline)) void dots(F (&sums)[I][J], const X* x, int64_t ldx, const T* w, int64_t ldw, int64_t K) {
  using Step = Few<X, T>;
  F sum[I][J] = {};
  for (; K >= Step::STEP; K -= Step::STEP, x += Step::STEP, w += Step::STEP) {
    decltype(Step::load(w, 0)) values[J];
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      if (FETCHES) __builtin_prefetch(w + (J + j) * ldw);
      values[j] = Step::load(w + j * ldw, Step::STEP);
    }
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
      const auto a = Step::load(x + i * ldx, Step::STEP);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] = Step::add(sum[i][j], a, values[j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      if (K > 0) sum[i][j] = Step::add(sum[i][j], Step::load(x + i * ldx, K), Step::load(w + j * ldw, K));
      sums[i][j] = sum[i][j];
    }
  }
}

// As dots(), but every 64 steps are summed by themselves: see gemm_body.h.
template <bool FETCHES, class X, class T, int I, int J>
PYPEFT_INLINE void long_dots(F (&sum)[I][J], const X* x, int64_t ldx, const T* w, int64_t ldw, int64_t K) {
  constexpr int64_t MOST = 64 * Few<X, T>::STEP;
  dots<FETCHES>(sum, x, ldx, w, ldw, at_most(MOST, K));
  for (int64_t k = MOST; k < K; k += MOST) {
    F part[I][J];
    dots<FETCHES>(part, x + k, ldx, w + k, ldw, at_most(MOST, K - k));
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] += part[i][j];
    }
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

// Rows [m, m + I) of y at columns [n, n + J). B: the dtype of b, or T of the result if that is spread codes. The
// low-rank part, which may be large from the start, is added last.
template <bool FIRST, class X, class B, class T, class P, int I, int J>
inline void few_tile(const FewArgs& a, int64_t m, int64_t n) {
  float total[I][J];
  F sum[I][J];
  if (!a.spread) {
    const B* b = (const B*)a.b + (a.codes ? 0 : n * a.ldb);
    long_dots<FIRST>(sum, (const X*)a.a + m * a.lda, a.lda, b, a.ldb, a.K);
  } else if (a.codes->format == Format::table4) {
    decoded_dots<Format::table4>(sum, a.spread + m * a.K, *a.codes, n);
  } else if (a.codes->format == Format::int8) {
    decoded_dots<Format::int8>(sum, a.spread + m * a.K, *a.codes, n);
  } else {
    decoded_dots<Format::fp8>(sum, a.spread + m * a.K, *a.codes, n);
  }
  if (a.spread && !are_finite(sum)) add_scaled(sum, (const float*)a.a + m * a.lda, a.lda, *a.codes, n);
  sum_all_lanes(total, sum);
  if (a.r > 0) {
    F low[I][J];
    float update[I][J];
    long_dots<FIRST>(low, (const P*)a.left + m * a.ldl, a.ldl, (const P*)a.right + n * a.ldr, a.ldr, a.r);
    sum_all_lanes(update, low);
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) total[i][j] += update[i][j] * a.factor;  // of lanes infinity * 0 would be NaN
    }
  }
  if (a.bias) {
    for (int j = 0; j < J; ++j) {
      const float bias = as_float((const T*)a.bias + (n + j) * a.bias_step);
      for (int i = 0; i < I; ++i) total[i][j] += bias;
    }
  }
  if (a.scale.factors) scale_tile<T>(a, total, m, n);
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) narrow((T*)a.y + (m + i) * a.N + n, widen(total[i], J), J);
}

// The first tile prefetches the rows of the weight that come next.
template <class X, class B, class T, class P, int J>
inline void few_tiles(const FewArgs& a, int64_t n) {
  int64_t m = 4;
  if (a.M >= 4) {
    few_tile<true, X, B, T, P, 4, J>(a, 0, n);
  } else if (a.M >= 2) {
    few_tile<true, X, B, T, P, 2, J>(a, 0, n), m = 2;
  } else if (a.M == 1) {
    few_tile<true, X, B, T, P, 1, J>(a, 0, n), m = 1;
  }
  for (; m + 4 <= a.M; m += 4) few_tile<false, X, B, T, P, 4, J>(a, m, n);
  for (; m + 2 <= a.M; m += 2) few_tile<false, X, B, T, P, 2, J>(a, m, n);
  if (m < a.M) few_tile<false, X, B, T, P, 1, J>(a, m, n);
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
