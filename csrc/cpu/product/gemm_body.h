// gemm() for AVX-512 (for_each.h).
//
// All operands are read in units of 32 bits: a float, or two neighbouring bfloat16 of one row of `a`, which one
// instruction multiplies and adds in float. A tile of 8 rows and 48 columns of c is summed in 24 registers, first over
// K, then over the r low-rank units; b is packed 48 columns at a time, once for all the rows of a block, so that its
// units of one k lie together. Eight rows are as many as an L1 cache of eight ways holds when their distance is a
// multiple of its size.
#include "cpu/product/panel_body.h"

constexpr int TILE_VECTORS = GEMM_COLUMNS / W;

template <class T>
PYPEFT_INLINE F add_unit(F sum, U a, U b) {
#if defined(ISA_BF16)
  if (PER_UNIT<T> == 2) return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
  return fma((F)a, (F)b, sum);
}

// sum[i][j] += the products of `units` units of row i of a, rows lda elements apart, with those of a packed panel.
template <class T, int I, int J>
PYPEFT_INLINE void add_products(F (&sum)[I][J], const T* a, int64_t lda, const uint32_t* panel, int64_t units) {
  for (int64_t u = 0; u < units; ++u, a += PER_UNIT<T>, panel += J * W) {
    U b[J];
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) b[j] = load_units(panel + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
      const U value = U{} + load_unit(a + i * lda);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] = add_unit<T>(sum[i][j], value, b[j]);
    }
  }
}

// What the tiles of one panel share.
struct Panel {
  const uint32_t *b, *right;  // [units, J * W]
  int64_t units, right_units;
  int64_t n, columns;  // its first column, and how many of its J * W exist
  float bias[GEMM_COLUMNS], factors[GEMM_COLUMNS], shift[GEMM_COLUMNS];
};

template <class T>
PYPEFT_INLINE void narrow_columns(T* p, F v, int64_t columns) {
  if (columns == W)
    narrow(p, v);
  else
    narrow(p, v, columns);
}

// Rows [m, m + I) of a panel whose columns are scaled as they leave; out of line, for a tile without a scale to stay as
// short as it is.
template <class T, int I, int J>
__attribute__((noinline)) void store_scaled(const GemmArgs& g, const Panel& p, const F (&total)[I][J], int64_t m) {
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) {
      const int64_t columns = at_most(W, p.columns - j * W), at = (m + i) * g.N + p.n + j * W;
      if (g.scale.z) narrow_columns((T*)g.scale.z + at, total[i][j], columns);
      narrow_columns((T*)g.c + at, fma(total[i][j], load(p.factors + j * W), load(p.shift + j * W)), columns);
    }
  }
}

// Adds the low-rank part and the bias to the sums of a tile, and stores it. The low-rank part, which may be large from
// the start, is added last.
template <class T, int I, int J>
PYPEFT_INLINE void finish_tile(const GemmArgs& g, const Panel& p, const F (&sum)[I][J], F (&low)[I][J], int64_t m) {
#pragma GCC unroll 8
  for (int i = 0; i < I; ++i) {
    const uint8_t* mask = g.mask ? g.mask + (m + i) * g.mask_row + p.n / 8 : nullptr;
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      const int64_t columns = at_most(W, p.columns - j * W);
      if (mask) low[i][j] = keep(low[i][j], mask_bits(mask, j * W, columns));
      low[i][j] += load(p.bias + j * W);
    }
  }
  if (g.scale.factors) {
    F total[I][J];
    for (int i = 0; i < I; ++i) {
      for (int j = 0; j < J; ++j) total[i][j] = sum[i][j] + low[i][j];
    }
    return store_scaled<T>(g, p, total, m);
  }
  T* c = (T*)g.c + m * g.N + p.n;
#pragma GCC unroll 8
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      narrow_columns(c + i * g.N + j * W, sum[i][j] + low[i][j], at_most(W, p.columns - j * W));
    }
  }
}

// STEP products at a time are summed in registers: shorter sums of sums lose less to rounding than one long sum.
template <class T, int I, int J>
inline void gemm_tile(const GemmArgs& g, const Panel& p, int64_t m) {
  constexpr int64_t STEP = PER_UNIT<T> == 1 ? 128 : 512;  // a sum in float32 ends no rounder than the vendor's
  F sum[I][J] = {};
  const T* a = (const T*)g.a + m * g.lda;
  for (int64_t u = 0; u < p.units; u += STEP) {
    F part[I][J] = {};
    add_products<T>(part, a + u * PER_UNIT<T>, g.lda, p.b + u * J * W, at_most(STEP, p.units - u));
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] += part[i][j];
    }
  }
  F low[I][J] = {};
  add_products<T>(low, (const T*)g.left + m * g.left_ld, g.left_ld, p.right, p.right_units);
  finish_tile<T>(g, p, sum, low, m);
}

template <class T, int J>
inline void gemm_rows(const GemmArgs& g, const Panel& p, int64_t m, int64_t last) {
  for (; m + TILE_ROWS <= last; m += TILE_ROWS) gemm_tile<T, TILE_ROWS, J>(g, p, m);
  for (; m + 4 <= last; m += 4) gemm_tile<T, 4, J>(g, p, m);
  for (; m < last; ++m) gemm_tile<T, 1, J>(g, p, m);
}

// The panel's part of a vector [N]; 0 where there is none.
template <class T, int J>
inline void panel_columns(const Panel& p, const T* from, float* to) {
  for (int64_t k = 0; k < J * W; k += W) {
    const int64_t columns = at_most(W, p.columns - k);
    store(to + k, from && columns > 0 ? widen(from + p.n + k, columns) : F{});
  }
}

template <class T, int J>
PYPEFT_INLINE void load_vectors(const GemmArgs& g, Panel& p) {
  panel_columns<T, J>(p, (const T*)g.bias, p.bias);
  panel_columns<float, J>(p, g.scale.factors, p.factors);
  panel_columns<float, J>(p, g.scale.shift, p.shift);
}

#include "cpu/product/few_gemm_body.h"

template <class T, int J>
inline void gemm_panel(const GemmArgs& g, uint32_t* room, Panel& p, int64_t m, int64_t last) {
  p.units = ceil_div(g.K, PER_UNIT<T>), p.right_units = ceil_div(g.r, PER_UNIT<T>);
  p.b = room, p.right = room + p.units * J * W;
  pack_panel<T, J>(g.b, g.K, p.n, p.columns, 0, p.units, room);
  pack_panel<T, J>(g.right, g.r, p.n, p.columns, 0, p.right_units, room + p.units * J * W);
  load_vectors<T, J>(g, p);
  gemm_rows<T, J>(g, p, m, last);
}

template <class T>
inline void gemm_tasks_of(const GemmArgs& g, float* room, int64_t begin, int64_t end) {
  if (g.group > 0) return few_gemm_tasks<T>(g, room, begin, end);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t m = task / g.panels * g.block, last = at_most(m + g.block, g.M);
    Panel p;
    p.n = task % g.panels * GEMM_COLUMNS, p.columns = at_most(GEMM_COLUMNS, g.N - p.n);
    uint32_t* units = (uint32_t*)room;
    if (p.columns <= W) {
      gemm_panel<T, 1>(g, units, p, m, last);
    } else if (p.columns <= 2 * W) {
      gemm_panel<T, 2>(g, units, p, m, last);
    } else {
      gemm_panel<T, TILE_VECTORS>(g, units, p, m, last);
    }
  }
}

// room: for one panel of b and of right, [units, GEMM_COLUMNS]; of groups of panels see few_gemm().
inline void gemm_tasks(const GemmArgs& g, float* room, int64_t begin, int64_t end) {
#if defined(ISA_BF16)
  if (g.dtype == Dtype::bf16) return gemm_tasks_of<BF16>(g, room, begin, end);
#endif
  gemm_tasks_of<float>(g, room, begin, end);
}

template <class T>
inline void narrow_rows_of(const NarrowArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float* from = a.from + i * a.row;
    T* to = (T*)a.to + i * a.ld;
    for (int64_t k = 0; k < a.ld; k += W) {
      const int64_t n = at_most(W, a.columns - k);
      F values = {};
      if (a.column == 1) {
        values = n == W ? load(from + k) : widen(from + k, n > 0 ? n : 0);
      } else {
        for (int64_t j = 0; j < n; ++j) values[j] = from[(k + j) * a.column];
      }
      values *= a.factor;
      if (a.ld - k >= W)
        narrow(to + k, values);
      else
        narrow(to + k, values, a.ld - k);
    }
  }
}

inline void narrow_rows(const NarrowArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == Dtype::bf16) return narrow_rows_of<BF16>(a, begin, end);
  narrow_rows_of<float>(a, begin, end);
}
