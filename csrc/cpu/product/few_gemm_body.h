// gemm() of a few rows of `a` (for_each.h).
//
// Few rows multiply a unit of b too seldom to hide what it takes to bring it: b is read in the order of its memory, in
// pieces that wait in the L1 cache for all the rows. A task is a group of panels. FEW_UNITS of each panel of the group
// at a time are multiplied, and the sums of all the tiles of the group stay in memory until the end.

constexpr int64_t UNITS_A_PANEL = FEW_UNITS * GEMM_COLUMNS;

// The units of J * W columns of one k, or of the pair k, k + 1, of a matrix whose rows are dense along the columns.
template <int J>
PYPEFT_INLINE void load_across(U (&units)[J], const float* row, int64_t) {
#pragma GCC unroll 4
  for (int j = 0; j < J; ++j) units[j] = load_units(row + j * W);
}
#if defined(ISA_BF16)
template <int J>
PYPEFT_INLINE void load_across(U (&units)[J], const BF16* row, int64_t step) {
  typedef uint16_t HH __attribute__((vector_size(64)));
  HH low, high;  // the lanes of the two rows in turn; those of the second row count from 32 on
  for (int i = 0; i < 2 * W; ++i) low[i] = i % 2 * 2 * W + i / 2, high[i] = low[i] + W;
#pragma GCC unroll 4
  for (int j = 0; j + 2 <= J; j += 2) {
    const __m512i a = (__m512i)load_units(row + j * W), b = (__m512i)load_units(row + step + j * W);
    units[j] = (U)_mm512_maskz_permutex2var_epi16(~0u, a, (__m512i)low, b);
    units[j + 1] = (U)_mm512_maskz_permutex2var_epi16(~0u, a, (__m512i)high, b);
  }
  if (J % 2) {
    const __m512i a = _mm512_maskz_loadu_epi16(0xFFFF, row + (J - 1) * W);
    const __m512i b = _mm512_maskz_loadu_epi16(0xFFFF, row + step + (J - 1) * W);
    units[J - 1] = (U)_mm512_maskz_permutex2var_epi16(~0u, a, (__m512i)low, b);
  }
}
#endif

// add_products() of a tile with units where they lie; if PACKS, they are packed for the tiles that follow:
// panel[unit][column]. `ahead` elements after them lies what comes next.
template <bool PACKS, class T, int I, int J>
PYPEFT_INLINE void add_in_place(F (&sum)[I][J], const T* a, int64_t lda, const T* b, int64_t ldb, int64_t ahead,
                                uint32_t* panel, int64_t units) {
  for (int64_t u = 0; u < units; ++u, a += PER_UNIT<T>, b += PER_UNIT<T> * ldb, panel += J * W) {
    U values[J];
    load_across(values, b, ldb);
#pragma GCC unroll 2
    for (int64_t row = 0; row < PER_UNIT<T>; ++row) {
#pragma GCC unroll 4
      for (int j = 0; j < J; j += (int)PER_UNIT<T>) __builtin_prefetch(b + row * ldb + ahead + j * W);
    }
    if (PACKS) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) __builtin_memcpy(panel + j * W, &values[j], sizeof values[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
      const U value = U{} + load_unit(a + i * lda);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[i][j] = add_unit<T>(sum[i][j], value, values[j]);
    }
  }
}

// One product of few_gemm(): `rows` rows of a, lda apart, and a matrix b [K, ..].
template <class T>
struct FewProduct {
  const T* a;
  int64_t lda, rows, K;
  const Operand& b;
};

// sums [tiles, I, J * W] += units [u, end) of columns [n, n + columns). The last tile begins I rows before the end, so
// that it may repeat rows of the one before.
template <class T, int I, int J>
PYPEFT_INLINE void add_few_units(const FewProduct<T>& p, int64_t n, int64_t columns, int64_t u, int64_t end,
                                 int64_t ahead, uint32_t* panel, float* sums) {
  const Operand& b = p.b;
  const bool in_place = b.column == 1 && !b.codes && columns == J * W && end * PER_UNIT<T> <= p.K;
  if (!in_place) pack_panel<T, J>(b, p.K, n, columns, u, end, panel);
  for (int64_t m = 0; m < p.rows; m += I) {
    const T* a = p.a + at_most(m, p.rows - I) * p.lda + u * PER_UNIT<T>;
    F part[I][J] = {};
    const T* from = (const T*)b.data + u * PER_UNIT<T> * b.row + n;
    if (!in_place || m > 0) {
      add_products<T>(part, a, p.lda, panel, end - u);
    } else if (p.rows > I) {
      add_in_place<true>(part, a, p.lda, from, b.row, ahead, panel, end - u);
    } else {
      add_in_place<false>(part, a, p.lda, from, b.row, ahead, panel, end - u);
    }
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j, sums += W) store(sums, load(sums) + part[i][j]);
    }
  }
}

// Adds the low-rank part to the sums of one panel and stores them. low: memory for as many sums.
template <class T, int I, int J>
inline void finish_few(const GemmArgs& g, int64_t n, int64_t columns, uint32_t* units, float* low, const float* sums) {
  Panel p;
  p.n = n, p.columns = columns;
  load_vectors<T, J>(g, p);
  __builtin_memset(low, 0, round_up(g.M, I) * J * W * sizeof(float));
  const FewProduct<T> right{(const T*)g.left, g.left_ld, g.M, g.r, g.right};
  const int64_t count = ceil_div(g.r, PER_UNIT<T>);
  for (int64_t u = 0; u < count; u += FEW_UNITS) {
    const int64_t end = at_most(u + FEW_UNITS, count), ahead = end < count ? FEW_UNITS * PER_UNIT<T> * g.right.row : 0;
    add_few_units<T, I, J>(right, n, columns, u, end, ahead, units, low);
  }
  for (int64_t m = 0; m < g.M; m += I, sums += I * J * W, low += I * J * W) {
    F sum[I][J], update[I][J];
    __builtin_memcpy(sum, sums, sizeof sum);
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) update[i][j] = load(low + (i * J + j) * W) * g.factor;
    }
    finish_tile<T>(g, p, sum, update, at_most(m, g.M - I));
  }
}

// Panels [panel, end) of all rows. room: FEW_UNITS units of a panel, and the sums of a panel and of the group.
template <class T, int I>
inline void few_gemm(const GemmArgs& g, float* room, int64_t panel, int64_t end) {
  const int64_t count = ceil_div(g.K, PER_UNIT<T>), of_panel = round_up(g.M, I) * GEMM_COLUMNS;
  uint32_t* units = (uint32_t*)room;
  float *low = room + UNITS_A_PANEL, *sums = low + of_panel;
  __builtin_memset(sums, 0, (end - panel) * of_panel * sizeof(float));
  const FewProduct<T> product{(const T*)g.a, g.lda, g.M, g.K, g.b};
  for (int64_t u = 0; u < count; u += FEW_UNITS) {
    const int64_t last = at_most(u + FEW_UNITS, count);
    for (int64_t q = panel; q < end; ++q) {
      const int64_t n = q * GEMM_COLUMNS, columns = at_most(GEMM_COLUMNS, g.N - n);
      int64_t ahead = GEMM_COLUMNS;  // the next panel, or the first one of the next units
      if (q + 1 == end) ahead = last < count ? FEW_UNITS * PER_UNIT<T> * g.b.row - (q - panel) * GEMM_COLUMNS : 0;
      float* to = sums + (q - panel) * of_panel;
      if (columns <= W) {
        add_few_units<T, I, 1>(product, n, columns, u, last, ahead, units, to);
      } else if (columns <= 2 * W) {
        add_few_units<T, I, 2>(product, n, columns, u, last, ahead, units, to);
      } else {
        add_few_units<T, I, TILE_VECTORS>(product, n, columns, u, last, ahead, units, to);
      }
    }
  }
  for (int64_t q = panel; q < end; ++q, sums += of_panel) {
    const int64_t n = q * GEMM_COLUMNS, columns = at_most(GEMM_COLUMNS, g.N - n);
    if (columns <= W) {
      finish_few<T, I, 1>(g, n, columns, units, low, sums);
    } else if (columns <= 2 * W) {
      finish_few<T, I, 2>(g, n, columns, units, low, sums);
    } else {
      finish_few<T, I, TILE_VECTORS>(g, n, columns, units, low, sums);
    }
  }
}

// Tasks are groups of panels.
template <class T>
inline void few_gemm_tasks(const GemmArgs& g, float* room, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t panel = task * g.group, last = at_most(panel + g.group, g.panels);
    if (g.M >= TILE_ROWS) {
      few_gemm<T, TILE_ROWS>(g, room, panel, last);
    } else if (g.M >= 4) {
      few_gemm<T, 4>(g, room, panel, last);
    } else if (g.M >= 2) {
      few_gemm<T, 2>(g, room, panel, last);
    } else {
      few_gemm<T, 1>(g, room, panel, last);
    }
  }
}
