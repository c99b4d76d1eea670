// The vectors and instructions of AVX-512 (F, BW, DQ, VL). simd.h holds the rest. No include guard: see for_each.h.
constexpr int W = 16;       // floats in a vector
constexpr int ROWS_1 = 16;  // rows of a register tile that is one vector wide,
constexpr int ROWS_2 = 8;   // and of one that is two vectors wide: as many rows as the 32 registers hold

typedef float F __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint64_t D __attribute__((vector_size(64)));  // 64-bit lanes

PYPEFT_INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

// This file uses intrinsics with a mask of all lanes, because GCC 12 warns that those without a mask read an undefined
// vector.
PYPEFT_INLINE F widen_f16(const uint16_t* p) {
  return (F)_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256((const __m256i*)p));
}
PYPEFT_INLINE void narrow_f16(uint16_t* p, F v) {
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, NEAREST));
}

// The first n < W floats; the other lanes are 0.
PYPEFT_INLINE F widen(const float* p, int64_t n) { return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }

// v in the lanes whose bit is set, 0 in the others.
PYPEFT_INLINE F keep(F v, uint32_t bits) { return (F)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)v); }

// The 64-bit products of the low 32 bits of each lane.
PYPEFT_INLINE D mul32(D a, D b) { return (D)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b); }

// Each lane holds four 32-bit words, in the low halves of w0..w3, which are eight 16-bit parts. Sets bit j of the byte
// of the lane in `out` to 1 if part j >= threshold, otherwise to 0.
PYPEFT_INLINE void store_keep_bytes(uint8_t* out, D w0, D w1, D w2, D w3, uint16_t threshold) {
  const __m512i limit = _mm512_set1_epi16((short)threshold);
  const __m512i low = _mm512_mask_blend_epi32(0xAAAA, (__m512i)w0, (__m512i)(w1 << 32));   // parts 0..3
  const __m512i high = _mm512_mask_blend_epi32(0xAAAA, (__m512i)w2, (__m512i)(w3 << 32));  // parts 4..7
  const __m512i bits = _mm512_or_si512(
      _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(low, limit), _mm512_set1_epi64(0x0008000400020001)),
      _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(high, limit), _mm512_set1_epi64(0x0080004000200010)));
  D folded = (D)bits | (D)bits >> 32;
  folded |= folded >> 16;
  _mm_storel_epi64((__m128i*)out, _mm512_maskz_cvtepi64_epi8(0xFF, (__m512i)folded));
}

// Lane i is the sum of the lanes of v[i], with the bits of sum_lanes(): halves are added to each other, of two vectors
// at a time.
PYPEFT_INLINE F sums_of_lanes(const F (&v)[W]) {
  __m512 half[8], quarter[4], pair[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int at = i % 4 / 2 + i % 2 * 2 + i / 4 * 8;  // so that lane i of the result is that of v[i]
    const __m512 a = (__m512)v[at], b = (__m512)v[at + 4];
    half[i] = _mm512_maskz_shuffle_f32x4(0xFFFF, a, b, 0x44) + _mm512_maskz_shuffle_f32x4(0xFFFF, a, b, 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quarter[i] = _mm512_maskz_shuffle_f32x4(0xFFFF, half[i], half[i + 4], 0x88) +
                 _mm512_maskz_shuffle_f32x4(0xFFFF, half[i], half[i + 4], 0xDD);
  }
  for (int i = 0; i < 2; ++i) {
    const __m512d a = (__m512d)quarter[i], b = (__m512d)quarter[i + 2];
    pair[i] = (__m512)_mm512_maskz_unpacklo_pd(0xFF, a, b) + (__m512)_mm512_maskz_unpackhi_pd(0xFF, a, b);
  }
  return (F)(_mm512_shuffle_ps(pair[0], pair[1], 0x88) + _mm512_shuffle_ps(pair[0], pair[1], 0xDD));
}
