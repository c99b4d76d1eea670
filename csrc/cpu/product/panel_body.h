// Packs panels of an operand of gemm() for AVX-512: units of 32 bits (gemm_body.h) of some columns, those of one k
// together. A quantised weight is decoded on the way.
#include "cpu/frozen/codes.h"
#include "cpu/transpose_units_body.h"

template <class T>
constexpr int64_t PER_UNIT = sizeof(uint32_t) / sizeof(T);

PYPEFT_INLINE uint32_t load_unit(const void* p) {
  uint32_t unit;
  __builtin_memcpy(&unit, p, sizeof unit);
  return unit;
}
PYPEFT_INLINE U load_units(const void* p) {
  U units;
  __builtin_memcpy(&units, p, sizeof units);
  return units;
}

// Up to n < W elements of a row as units; what is not there is 0.
template <class T>
PYPEFT_INLINE U load_row(const T* p, int64_t n) {
  if (n >= W * PER_UNIT<T>) return load_units(p);
  T all[W * PER_UNIT<T>] = {};
  if (n > 0) __builtin_memcpy(all, p, n * sizeof(T));
  return load_units(all);
}

// Units of W columns of one k, or of the pair k, k + 1, from rows that are dense along the columns.
PYPEFT_INLINE U across(const float* row, int64_t, int64_t, int64_t columns) { return load_row(row, columns); }
PYPEFT_INLINE U across(const BF16* row, int64_t step, int64_t rows, int64_t columns) {
  const BF16* next = row + step;
  const F even = columns >= W ? widen(row) : widen(row, columns > 0 ? columns : 0);
  const F odd = rows < 2 ? F{} : columns >= W ? widen(next) : widen(next, columns > 0 ? columns : 0);
  return (U)even >> 16 | (U)odd;
}

// The same two of a weight that is decoded: W units of row n from column k on, and units of W columns of one row n or
// of the pair n, n + 1.
PYPEFT_INLINE U decoded_row(const float*, const Codes& c, int64_t n, int64_t k) {
  return k < c.K ? (U)decoded(c, n, k, at_most(W, c.K - k)) : U{};
}
PYPEFT_INLINE U decoded_across(const float*, const Codes& c, int64_t n, int64_t k, int64_t columns) {
  return columns > 0 ? (U)decoded(c, n, k, at_most(W, columns)) : U{};
}
#if defined(ISA_BF16)
// Pairs of which the even lanes have the lower half.
PYPEFT_INLINE U pairs_of(F even, F odd) {
  typedef uint16_t HH __attribute__((vector_size(64)));
  HH order;
  for (int i = 0; i < 32; ++i) order[i] = i % 2 * 16 + i / 2;
  return (U)_mm512_maskz_permutexvar_epi16(~0u, (__m512i)order,
                                           (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}
// The weights from number `at` on, which is even; they have one scale.
PYPEFT_INLINE U pairs_of_table4(const Codes& c, int64_t at, F table) {
  const U bytes = bytes_as_units(c.data + at / 2);
  const F scale = F{} + scale_of_block(c, at >> c.shift);
  return pairs_of(look_up(table, bytes >> 4) * scale, look_up(table, bytes & 15) * scale);
}
PYPEFT_INLINE U decoded_row(const BF16*, const Codes& c, int64_t n, int64_t k) {
  const int64_t count = at_most(2 * W, c.K - k);
  if (count == 2 * W) {
    return (U)_mm512_cvtne2ps_pbh((__m512)decoded(c, n, k + W, W), (__m512)decoded(c, n, k, W));
  }
  BF16 all[2 * W] = {};
  if (count > 0) narrow(all, decoded(c, n, k, at_most(W, count)));
  if (count > W) narrow(all + W, decoded(c, n, k + W, count - W));
  return load_units(all);
}
PYPEFT_INLINE U decoded_across(const BF16*, const Codes& c, int64_t n, int64_t k, int64_t columns) {
  if (columns <= 0) return U{};
  columns = at_most(W, columns);
  return pairs_of(decoded(c, n, k, columns), n + 1 < c.N ? decoded(c, n + 1, k, columns) : F{});
}
// Writes two vectors of pairs of rows n and n + 1. False if the format is another one, or a row has several scales.
PYPEFT_INLINE bool decode_two_rows(const Codes& c, int64_t n, int64_t k, int64_t columns, uint32_t* to) {
  const int64_t at = n * c.K + k, next = at + c.K;
  if (c.format != Format::table4 || columns < 2 * W || n + 1 >= c.N || at % 2 != 0 || next % 2 != 0) return false;
  if (scale_end(c, n, k) < k + 2 * W || scale_end(c, n + 1, k) < k + 2 * W) return false;
  typedef uint16_t HH __attribute__((vector_size(64)));
  const F table = load(c.table), scale = F{} + scale_at(c, n, k), its = F{} + scale_at(c, n + 1, k);
  const U bytes = bytes_as_units(c.data + at / 2), below = bytes_as_units(c.data + next / 2);
  const __m512i even = (__m512i)_mm512_cvtne2ps_pbh((__m512)(look_up(table, below >> 4) * its),
                                                    (__m512)(look_up(table, bytes >> 4) * scale));
  const __m512i odd = (__m512i)_mm512_cvtne2ps_pbh((__m512)(look_up(table, below & 15) * its),
                                                   (__m512)(look_up(table, bytes & 15) * scale));
  for (int v = 0; v < 2; ++v) {
    HH order;  // half i of `even` and, 32 elements further on, of `odd` has the weights of row n + i
    for (int l = 0; l < 32; ++l) order[l] = l / 2 % 2 * 32 + l % 2 * 16 + (v * W + l / 2) / 2;
    const __m512i units = _mm512_maskz_permutex2var_epi16(~0u, even, (__m512i)order, odd);
    __builtin_memcpy(to + v * W, &units, sizeof units);
  }
  return true;
}
#endif

// The rows of a unit that pack_panel() reads PREFETCH_ROWS rows later: rows far apart are no stream that a CPU fetches
// ahead by itself.
constexpr int64_t PREFETCH_ROWS = 32;

template <class T>
PYPEFT_INLINE void prefetch_rows(const T* data, int64_t step, int64_t rows) {
  if (rows < PREFETCH_ROWS + PER_UNIT<T>) return;
  for (int64_t i = 0; i < PER_UNIT<T>; ++i) {
    const char* row = (const char*)(data + (PREFETCH_ROWS + i) * step);
    __builtin_prefetch(row);
    __builtin_prefetch(row + 64);
  }
}

// Fetches codes from weight (n, k) on, before they are read; none if the codes end earlier.
PYPEFT_INLINE void prefetch_codes(const Codes& c, int64_t n, int64_t k, int64_t bytes) {
  const int64_t at = n * c.K + k, first = c.format == Format::table4 ? at / 2 : at;
  const int64_t all = c.format == Format::table4 ? c.N * c.K / 2 : c.N * c.K;
  if (first + bytes > all) return;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(c.data + first + i);
}

// block[i] = units of row n + i from column k on, 0 for i >= rows. The loop is not unrolled, for the sake of its
// length.
template <class T>
PYPEFT_INLINE void decode_rows(U (&block)[16], const Codes& c, int64_t n, int64_t k, int64_t rows) {
#if defined(ISA_BF16)
  // A faster decoded_row() for rows of four-bit codes; what they share is asked once.
  const int64_t first = n * c.K + k, in_block = (int64_t{1} << c.shift) - 1;
  const bool even = PER_UNIT<T> == 2 && c.format == Format::table4 && c.K % 2 == 0 && k % 2 == 0 && k + 2 * W <= c.K;
  const F table = even ? load(c.table) : F{};
#endif
#pragma GCC unroll 1
  for (int i = 0; i < 16; ++i) {
#if defined(ISA_BF16)
    const int64_t at = first + i * c.K;
    if (even && i < rows && (at & in_block) + 2 * W <= in_block + 1) {
      block[i] = pairs_of_table4(c, at, table);
      continue;
    }
#endif
    block[i] = i < rows ? decoded_row((const T*)nullptr, c, n + i, k) : U{};
  }
}

// A part of the rows after [n, n + J * W), which follow each other in memory: as much as pack_panel() reads at once.
template <class T, int J>
PYPEFT_INLINE void prefetch_next(const Codes& c, int64_t n, int64_t u) {
  const int64_t weights = 16 * PER_UNIT<T> * J * W;
  prefetch_codes(c, n + J * W, u / 16 * weights, c.format == Format::table4 ? weights / 2 : weights);
}

// Units of J vectors of columns from k on, of row n or of the pair n, n + 1 of a weight that is decoded.
template <class T, int J>
inline void decode_across(const Codes& c, int64_t n, int64_t k, int64_t columns, uint32_t* to) {
  for (int64_t i = n + PREFETCH_ROWS; i < n + PREFETCH_ROWS + PER_UNIT<T>; ++i) {
    prefetch_codes(c, i < c.N ? i : i - c.N, i < c.N ? k : k + J * W, 1);
  }
  for (int j = 0; j < J; ++j) {
#if defined(ISA_BF16)
    if (PER_UNIT<T> == 2 && j + 1 < J && decode_two_rows(c, n, k + j * W, columns - j * W, to + j * W)) {
      ++j;
      continue;
    }
#endif
    const U unit = decoded_across((const T*)nullptr, c, n, k + j * W, columns - j * W);
    __builtin_memcpy(to + j * W, &unit, sizeof unit);
  }
}

// Units [u, end) of columns [n, n + J * W) of an operand [K, N]: to[unit][column]. u is a multiple of 16.
template <class T, int J>
inline void pack_panel(const Operand& from, int64_t K, int64_t n, int64_t columns, int64_t u, int64_t end,
                       uint32_t* to) {
  const T* data = (const T*)from.data + n * from.column;
  if (from.column == 1) {
    data += u * PER_UNIT<T> * from.row;
    for (; u < end; ++u, data += PER_UNIT<T> * from.row, to += J * W) {
      if (from.codes) {
        decode_across<T, J>(*from.codes, u * PER_UNIT<T>, n, columns, to);
        continue;
      }
      prefetch_rows<T>(data, from.row, K - u * PER_UNIT<T>);
      for (int j = 0; j < J; ++j) {
        const U unit = across(data + j * W, from.row, K - u * PER_UNIT<T>, columns - j * W);
        __builtin_memcpy(to + j * W, &unit, sizeof unit);
      }
    }
    return;
  }
  for (; u < end; u += 16, to += 16 * J * W) {
    if (from.codes) prefetch_next<T, J>(*from.codes, n, u);
    for (int j = 0; j < J; ++j) {
      U block[16];
      if (from.codes) {
        decode_rows<T>(block, *from.codes, n + j * W, u * PER_UNIT<T>, columns - j * W);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const int64_t column = j * W + i;
          block[i] =
              column < columns ? load_row(data + column * from.column + u * PER_UNIT<T>, K - u * PER_UNIT<T>) : U{};
        }
      }
      transpose_units(block);
      const int64_t rows = at_most(16, end - u);
      for (int64_t i = 0; i < rows; ++i) __builtin_memcpy(to + (i * J + j) * W, &block[i], sizeof block[i]);
    }
  }
}
