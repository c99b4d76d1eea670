// The vectors and instructions of AVX2, FMA and F16C. simd.h holds the rest. No include guard: see for_each.h.
constexpr int W = 8;       // floats in a vector
constexpr int ROWS_1 = 8;  // rows of a register tile that is one vector wide,
constexpr int ROWS_2 = 4;  // and of one that is two vectors wide: as many rows as the 16 registers hold

typedef float F __attribute__((vector_size(32)));
typedef uint32_t U __attribute__((vector_size(32)));
typedef uint64_t D __attribute__((vector_size(32)));  // 64-bit lanes

PYPEFT_INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

PYPEFT_INLINE F widen_f16(const uint16_t* p) { return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
PYPEFT_INLINE void narrow_f16(uint16_t* p, F v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// v in the lanes whose bit is set, 0 in the others.
PYPEFT_INLINE F keep(F v, uint32_t bits) {
  const U lane = {1, 2, 4, 8, 16, 32, 64, 128};
  return (F)((U)v & (U)((lane & bits) == lane));
}

// The 64-bit products of the low 32 bits of each lane.
PYPEFT_INLINE D mul32(D a, D b) { return (D)_mm256_mul_epu32((__m256i)a, (__m256i)b); }

// Each lane holds four 32-bit words, in the low halves of w0..w3, which are eight 16-bit parts. Sets bit j of the byte
// of the lane in `out` to 1 if part j >= threshold, otherwise to 0.
PYPEFT_INLINE void store_keep_bytes(uint8_t* out, D w0, D w1, D w2, D w3, uint16_t threshold) {
  const __m256i limit = _mm256_set1_epi16((short)threshold);
  const __m256i low = _mm256_blend_epi32((__m256i)w0, (__m256i)(w1 << 32), 0xAA);   // parts 0..3
  const __m256i high = _mm256_blend_epi32((__m256i)w2, (__m256i)(w3 << 32), 0xAA);  // parts 4..7
  const __m256i keep_low = _mm256_cmpeq_epi16(_mm256_max_epu16(low, limit), low);
  const __m256i keep_high = _mm256_cmpeq_epi16(_mm256_max_epu16(high, limit), high);
  const __m256i bits = _mm256_or_si256(_mm256_and_si256(keep_low, _mm256_set1_epi64x(0x0008000400020001)),
                                       _mm256_and_si256(keep_high, _mm256_set1_epi64x(0x0080004000200010)));
  D folded = (D)bits | (D)bits >> 32;
  folded |= folded >> 16;
  for (int lane = 0; lane < 4; ++lane) out[lane] = (uint8_t)folded[lane];
}
