// Products with the codes of a quantised weight, decoded in registers, for every instruction set (for_each.h).
#include "cpu/frozen/codes.h"

#if defined(ISA_AVX512)
// The values of 32 codes of a row from p on; table4: first the even ones, then the odd ones. GAIN is what is still to
// be multiplied, beside the scale as it is stored.
template <Format FORMAT>
struct Decoder;
template <>
struct Decoder<Format::table4> {
  static constexpr float GAIN = 1;
  static constexpr int64_t BYTES = 16;
  F table;
  PYPEFT_INLINE explicit Decoder(const Codes& c) : table(load(c.table)) {}
  PYPEFT_INLINE void operator()(F (&v)[2], const uint8_t* p) const {
    const U codes = bytes_as_units(p);
    v[0] = look_up(table, codes >> 4), v[1] = look_up(table, codes & 15);
  }
};
template <>
struct Decoder<Format::int8> {
  static constexpr float GAIN = 1.0f / 127;
  static constexpr int64_t BYTES = 32;
  PYPEFT_INLINE explicit Decoder(const Codes&) {}
  PYPEFT_INLINE void operator()(F (&v)[2], const uint8_t* p) const {
    v[0] = sixteen_of_int8(p), v[1] = sixteen_of_int8(p + W);
  }
};
template <>
struct Decoder<Format::fp8> {
  static constexpr float GAIN = FP8_GAIN;
  static constexpr int64_t BYTES = 32;
  PYPEFT_INLINE explicit Decoder(const Codes&) {}
  PYPEFT_INLINE void operator()(F (&v)[2], const uint8_t* p) const { thirty_two_of_fp8(v, p); }
};

// The scales of blocks first, first + 1, .. of table4, at most `count` <= W, which are read from the result on.
PYPEFT_INLINE const float* block_scales(const Codes& c, int64_t first, int64_t count, float* room) {
  if (!c.nested) return c.scale + first;
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  const __m512i codes = _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_maskz_loadu_epi8(there, c.nested + first));
  const F values = (F)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, codes, c.map, 4);
  const int64_t group = first >> c.nested_shift, last = (first + count - 1) >> c.nested_shift;
  F scale = F{} + c.scale[group];
  for (int64_t i = 0; last > group && i < count; ++i) scale[i] = c.scale[(first + i) >> c.nested_shift];
  store(room, values * scale + c.offset);
  return room;
}

// dots() with rows n, n + 1, .. of a quantised weight. x has the order of the decoder, as FewArgs::spread
// holds it. The sums of a piece of a block of weights with one scale are multiplied by the scale.
template <Format FORMAT, int I, int J>
PYPEFT_INLINE void decoded_dots(F (&sum)[I][J], const float* x, const Codes& c, int64_t n) {
  using Decode = Decoder<FORMAT>;
  constexpr bool TABLE = FORMAT == Format::table4;
  const Decode decode(c);
  const int64_t block = at_most((int64_t)1 << (TABLE ? c.shift : c.column_shift), c.K);
  const int64_t row_bytes = TABLE ? c.K / 2 : c.K;
  const int64_t ahead = J * row_bytes;  // the rows that come next
  float room[J][W];
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) sum[i][j] = F{};
  }
  for (int64_t chunk = 0; chunk < c.K; chunk += W * block) {
    const int64_t blocks = at_most(W, (c.K - chunk + block - 1) / block);
    const float* scales[J];
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      scales[j] = TABLE ? block_scales(c, ((n + j) * c.K + chunk) >> c.shift, blocks, room[j])
                        : c.scale + ((n + j) >> c.row_shift) * c.scales_across + chunk / block;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = at_most(chunk + (b + 1) * block, c.K);
      for (int64_t at = chunk + b * block; at < end;) {
        F part[I][J] = {};
        const int64_t stop = at_most(at + 64 * W, end);
        for (; at < stop; at += 2 * W) {
#pragma GCC unroll 4
          for (int j = 0; j < J; ++j) {
            const uint8_t* from = c.data + (n + j) * row_bytes + at / (2 * W) * Decode::BYTES;
            __builtin_prefetch(from + ahead);
            F values[2];
            decode(values, from);
#pragma GCC unroll 4
            for (int i = 0; i < I; ++i) {
              part[i][j] = fma(load(x + i * c.K + at), values[0], part[i][j]);
              part[i][j] = fma(load(x + i * c.K + at + W), values[1], part[i][j]);
            }
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
          const F scale = F{} + scales[j][b] * Decode::GAIN;
#pragma GCC unroll 4
          for (int i = 0; i < I; ++i) sum[i][j] = fma(part[i][j], scale, sum[i][j]);
        }
      }
    }
  }
}
#else
template <Format FORMAT, int I, int J>
PYPEFT_INLINE void decoded_dots(F (&sum)[I][J], const float*, const Codes&, int64_t) {  // there is nothing spread
  for (int i = 0; i < I; ++i) {
    for (int j = 0; j < J; ++j) sum[i][j] = F{};
  }
}
#endif

// Computes the sums that are not finite again, slowly, of scaled weights: a sum of decoded_dots() has no scale yet, and
// may overflow where this one is finite. x is in its own order, rows ldx apart.
template <int I, int J>
__attribute__((noinline)) void add_scaled(F (&sum)[I][J], const float* x, int64_t ldx, const Codes& c, int64_t n) {
  for (int j = 0; j < J; ++j) {
    for (int i = 0; i < I; ++i) {
      if (sum_lanes(sum[i][j] * 0.0f) == 0) continue;
      sum[i][j] = F{};
      for (int64_t k = 0; k < c.K; k += W) sum[i][j] = fma(load(x + i * ldx + k), decoded(c, n + j, k, W), sum[i][j]);
    }
  }
}

template <int I, int J>
PYPEFT_INLINE bool are_finite(const F (&sum)[I][J]) {
  F all = {};
#pragma GCC unroll 4
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) all += sum[i][j] * 0.0f;
  }
  return sum_lanes(all) == 0;
}
