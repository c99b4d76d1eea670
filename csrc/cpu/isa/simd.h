// The functions that the kernels share, on the vectors F, U and D of one instruction set. No include guard: see
// for_each.h.
//
// All arithmetic is in float. A kernel stages a tile of its input: it copies the tile as float, and sets dropped
// elements to 0. The kernel then multiplies the tile with matrices packed as float, and narrows the sums to the dtype
// of the output.
typedef uint16_t H __attribute__((vector_size(2 * W)));

PYPEFT_INLINE F load(const float* p) {
  F v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
PYPEFT_INLINE void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }

// The bits of *p in every lane. `F{} + value` would be wrong for -0, because -0 + 0 is not -0.
PYPEFT_INLINE F broadcast(const float* p) {
  uint32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (F)(U{} + bits);
}

PYPEFT_INLINE F widen(const float* p) { return load(p); }
PYPEFT_INLINE F widen(const BF16* p) {
  H bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (F)(__builtin_convertvector(bits, U) << 16);
}
PYPEFT_INLINE F widen(const F16* p) { return widen_f16(&p->bits); }

// Rounds to the nearest value, ties to even, as PyTorch does.
PYPEFT_INLINE void narrow(float* p, F v) { store(p, v); }
PYPEFT_INLINE void narrow(BF16* p, F v) {
  const U bits = (U)v, rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16;
  const H out = __builtin_convertvector(v == v ? rounded : U{} + 0x7FC0, H);
  __builtin_memcpy(p, &out, sizeof out);
}
PYPEFT_INLINE void narrow(F16* p, F v) { narrow_f16(&p->bits, v); }

// The first n < W elements only: widen sets the other lanes to 0, and narrow does not store them.
template <class T>
PYPEFT_INLINE F widen(const T* p, int64_t n) {
  T all[W] = {};
#if defined(ISA_AVX512)
  const __m256i there = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
  __builtin_memcpy(all, &there, sizeof there);
#else
  __builtin_memcpy(all, p, n * sizeof(T));
#endif
  return widen(all);
}
template <class T>
PYPEFT_INLINE void narrow(T* p, F v, int64_t n) {
  T all[W];
  narrow(all, v);
  __builtin_memcpy(p, all, n * sizeof(T));
}

// The sum of the lanes, by pairwise addition.
PYPEFT_INLINE float sum_lanes(F v) {
  typedef float Four __attribute__((vector_size(16)));
  Four part[W / 4];
  __builtin_memcpy(part, &v, sizeof v);
#pragma GCC unroll 2
  for (int half = W / 8; half > 0; half /= 2) {
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  const Four sum = part[0];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// total[i][j] = sum_lanes(v[i][j]), the same bits.
template <int I, int J>
PYPEFT_INLINE void sum_all_lanes(float (&total)[I][J], const F (&v)[I][J]) {
#if defined(ISA_AVX512)
  if (I * J == W) {
    F each[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) each[i] = v[i / J][i % J];
    const F sums = sums_of_lanes(each);
    __builtin_memcpy(total, &sums, sizeof sums);
    return;
  }
#endif
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) total[i][j] = sum_lanes(v[i][j]);
  }
}

// The bits of the packed mask of a row for columns k, k + 1, ..., lowest first. k is a multiple of W, and columns <= W.
PYPEFT_INLINE uint32_t mask_bits(const uint8_t* row, int64_t k, int64_t columns) {
  uint32_t bits = row[k / 8];
  if (W > 8 && columns > 8) bits |= (uint32_t)row[k / 8 + 1] << 8;
  return bits >> k % 8;
}

// tile[i][k] = x[i][k] as float if the mask keeps the element, otherwise 0, for i < rows and k < columns; mask may be
// null. The columns up to the next multiple of W are set to 0.
template <class T>
inline void stage(float* tile, int64_t ld, const T* x, int64_t ldx, const uint8_t* mask, int64_t ldm, int64_t rows,
                  int64_t columns) {
  const int64_t whole = columns / W * W, rest = columns - whole;
  for (int64_t i = 0; i < rows; ++i, tile += ld, x += ldx) {
    if (mask == nullptr) {
      for (int64_t k = 0; k < whole; k += W) store(tile + k, widen(x + k));
      if (rest) store(tile + whole, widen(x + whole, rest));
    } else {
      for (int64_t k = 0; k < whole; k += W) store(tile + k, keep(widen(x + k), mask_bits(mask, k, W)));
      if (rest) store(tile + whole, keep(widen(x + whole, rest), mask_bits(mask, whole, rest)));
      mask += ldm;
    }
  }
}

// out[k] = factor * sums[k] for k < n, in the dtype of out. sums can be read up to the next multiple of W.
template <class T>
inline void narrow_row(T* out, const float* sums, float factor, int64_t n) {
  int64_t k = 0;
  for (; k + W <= n; k += W) narrow(out + k, load(sums + k) * factor);
  if (k < n) narrow(out + k, load(sums + k) * factor, n - k);
}

// A matrix of floats of any strides: element (i, k) is data[i * row + k * column].
struct Left {
  const float* data;
  int64_t row, column;
};

// c[i][j] = sum over k < n of left(i, k) * right[k][j], for I rows and J vectors; the sum is added to c if `add` is
// set. Partial sums of STEPS products are added, which has a smaller rounding error than one long sum.
template <int I, int J>
inline void multiply_tile(Left left, const float* right, int64_t ldr, int64_t n, float* c, int64_t ldc, bool add) {
  constexpr int64_t STEPS = 64;
  const float* a = left.data;
  int64_t k = 0;
  do {
    F sum[I][J] = {};
    const int64_t end = at_most(k + STEPS, n);
    for (; k < end; ++k, a += left.column, right += ldr) {
      F b[J];
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) b[j] = load(right + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < I; ++i) {
        const F value = broadcast(a + i * left.row);
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) sum[i][j] = fma(value, b[j], sum[i][j]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) {
        float* out = c + i * ldc + j * W;
        store(out, add ? load(out) + sum[i][j] : sum[i][j]);
      }
    }
    add = true;
  } while (k < n);
}

template <int J>
inline void multiply_rows(Left left, const float* right, int64_t ldr, int64_t rows, int64_t n, float* c, int64_t ldc,
                          bool add) {
  constexpr int I = J == 1 ? ROWS_1 : ROWS_2;
  int64_t i = 0;
  for (; i + I <= rows; i += I) {
    multiply_tile<I, J>({left.data + i * left.row, left.row, left.column}, right, ldr, n, c + i * ldc, ldc, add);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_tile<2, J>({left.data + i * left.row, left.row, left.column}, right, ldr, n, c + i * ldc, ldc, add);
  }
  if (i < rows) {
    multiply_tile<1, J>({left.data + i * left.row, left.row, left.column}, right, ldr, n, c + i * ldc, ldc, add);
  }
}

// c [rows, columns] = left [rows, n] right [n, columns]; the product is added to c if `add` is set. The columns of
// right and c up to the next multiple of W can be read and written. Every element is summed over k in order, so that
// the result does not depend on the grouping of rows and columns.
inline void multiply(Left left, const float* right, int64_t ldr, int64_t rows, int64_t columns, int64_t n, float* c,
                     int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + W < columns; j += 2 * W) multiply_rows<2>(left, right + j, ldr, rows, n, c + j, ldc, add);
  if (j < columns) multiply_rows<1>(left, right + j, ldr, rows, n, c + j, ldc, add);
}
