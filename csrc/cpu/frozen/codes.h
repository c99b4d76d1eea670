// Decodes the codes of a quantised weight, for every instruction set. No include guard: see for_each.h.

// The scale of a block of table4's codes.
inline float scale_of_block(const Codes& c, int64_t block) {
  return c.nested ? c.map[c.nested[block]] * c.scale[block >> c.nested_shift] + c.offset : c.scale[block];
}

// The scale of the weight (n, k). The weights of row n from k to scale_end(c, n, k) - 1 have the same scale.
inline float scale_at(const Codes& c, int64_t n, int64_t k) {
  if (c.format == Format::table4) return scale_of_block(c, (n * c.K + k) >> c.shift);
  const float scale = c.scale[(n >> c.row_shift) * c.scales_across + (k >> c.column_shift)];
  return c.format == Format::int8 ? scale * (1.0f / 127.0f) : scale;
}
inline int64_t scale_end(const Codes& c, int64_t n, int64_t k) {
  if (c.format == Format::table4) {
    const int64_t at = n * c.K + k;
    return at_most(k + (((at >> c.shift) + 1) << c.shift) - at, c.K);
  }
  return at_most(((k >> c.column_shift) + 1) << c.column_shift, c.K);
}

// The value of a byte in float8 e4m3fn. The format has no infinity and two NaNs.
inline float value_of_fp8(uint8_t byte) {
  const uint32_t magnitude = byte & 0x7F, sign = (uint32_t)(byte & 0x80) << 24;
  uint32_t bits = sign | 0x7FC00000;
  if (magnitude < 8) {
    const float value = (float)magnitude * (1.0f / 512.0f);  // subnormal
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  } else if (magnitude != 0x7F) {
    bits = sign | ((magnitude << 20) + (120u << 23));
  }
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// to[i] = the value of the code of weight (n, k + i) for i < count, without the scale.
inline void values(const Codes& c, int64_t n, int64_t k, int64_t count, float* to) {
  const int64_t at = n * c.K + k;
  if (c.format == Format::table4) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t e = at + i;
      to[i] = c.table[e % 2 ? c.data[e / 2] & 15 : c.data[e / 2] >> 4];
    }
  } else if (c.format == Format::int8) {
    for (int64_t i = 0; i < count; ++i) to[i] = (float)(int8_t)c.data[at + i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = value_of_fp8(c.data[at + i]);
  }
}

// to[i] = weight (n, k + i) for i < count.
inline void decode_run(const Codes& c, int64_t n, int64_t k, int64_t count, float* to) {
  values(c, n, k, count, to);
  for (int64_t end = k + count; k < end;) {
    const int64_t until = at_most(scale_end(c, n, k), end);
    const float scale = scale_at(c, n, k);
    for (; k < until; ++k, ++to) *to *= scale;
  }
}

#if defined(ISA_AVX512)
PYPEFT_INLINE F look_up(F table, U codes) {
  return (F)_mm512_maskz_permutexvar_ps(0xFFFF, (__m512i)codes, (__m512)table);
}
PYPEFT_INLINE U bytes_as_units(const uint8_t* p) {
  return (U)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)p));
}
// Sixteen weights of one row that have one scale; `at`, the number of the first weight, is even.
PYPEFT_INLINE F sixteen_of_table4(const Codes& c, int64_t at, F table, float scale) {
  const __m128i bytes = _mm_loadl_epi64((const __m128i*)(c.data + at / 2));
  const U doubled = (U)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_unpacklo_epi8(bytes, bytes));
  const U shifts = {4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0};
  return look_up(table, doubled >> shifts & 15) * scale;
}
// The values of sixteen bytes of int8; and of fp8, divided by FP8_GAIN, as float16 with the same bits has them.
constexpr float FP8_GAIN = 256;
PYPEFT_INLINE F sixteen_of_int8(const uint8_t* p) {
  const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)p));
  return (F)_mm512_maskz_cvtepi32_ps(0xFFFF, wide);
}
template <class H>
PYPEFT_INLINE H as_halves(H bytes) {  // of 16 bits
  const H magnitude = bytes & 0x7F;
  return (bytes << 8 & 0x8000) | (magnitude == 0x7F ? H{} + 0x7E00 : magnitude << 7);  // the format's NaN
}
PYPEFT_INLINE F sixteen_of_fp8(const uint8_t* p) {
  typedef uint16_t H __attribute__((vector_size(32)));
  const H bytes = (H)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  return (F)_mm512_maskz_cvtph_ps(0xFFFF, (__m256i)as_halves(bytes));
}
PYPEFT_INLINE void thirty_two_of_fp8(F (&v)[2], const uint8_t* p) {
  typedef uint16_t H __attribute__((vector_size(64)));
  const H bytes = (H)_mm512_maskz_cvtepu8_epi16(~0u, _mm256_loadu_si256((const __m256i*)p));
  const __m512i halves = (__m512i)as_halves(bytes);
  v[0] = (F)_mm512_maskz_cvtph_ps(0xFFFF, _mm512_maskz_extracti64x4_epi64(0xF, halves, 0));
  v[1] = (F)_mm512_maskz_cvtph_ps(0xFFFF, _mm512_maskz_extracti64x4_epi64(0xF, halves, 1));
}
#endif

// decoded() of a format, or of a run of scales, without a faster way. Out of line: it would be most of its callers'
// code.
__attribute__((noinline)) inline F decoded_by_element(const Codes& c, int64_t n, int64_t k, int64_t count) {
  float all[W] = {};
  decode_run(c, n, k, count, all);
  return load(all);
}

// Weights (n, k) to (n, k + count - 1) for count <= W; the other lanes are 0.
PYPEFT_INLINE F decoded(const Codes& c, int64_t n, int64_t k, int64_t count) {
#if defined(ISA_AVX512)
  const int64_t at = n * c.K + k;
  if (count == W && c.format == Format::table4 && at % 2 == 0 && scale_end(c, n, k) >= k + W) {
    return sixteen_of_table4(c, at, load(c.table), scale_at(c, n, k));
  }
  if (count == W && c.format != Format::table4 && scale_end(c, n, k) >= k + W) {
    const float scale = scale_at(c, n, k);
    return c.format == Format::int8 ? sixteen_of_int8(c.data + at) * scale
                                    : sixteen_of_fp8(c.data + at) * FP8_GAIN * scale;
  }
#endif
  return decoded_by_element(c, n, k, count);
}

// to[k] = weight (n, first + k) for k < columns.
template <class T>
inline void decode_row(const Codes& c, int64_t n, int64_t first, int64_t columns, T* to) {
  int64_t k = 0;
  for (; k + W <= columns; k += W) narrow(to + k, decoded(c, n, first + k, W));
  if (k < columns) narrow(to + k, decoded(c, n, first + k, columns - k), columns - k);
}
