// A transpose in registers, with AVX-512 (for_each.h).
#if defined(ISA_AVX512)
// 16 x 16 units, transposed in registers: in each of four rounds, half of one row trades places with half of another.
template <int S>
PYPEFT_INLINE void transpose_round(U (&v)[16]) {
  U low, high;
  for (uint32_t lane = 0; lane < 16; ++lane) {
    low[lane] = lane & S ? 16 + lane - S : lane;
    high[lane] = lane & S ? 16 + lane : lane + S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & S) continue;
    const __m512i a = (__m512i)v[i], b = (__m512i)v[i + S];
    v[i] = (U)_mm512_permutex2var_epi32(a, (__m512i)low, b);
    v[i + S] = (U)_mm512_permutex2var_epi32(a, (__m512i)high, b);
  }
}
PYPEFT_INLINE void transpose_units(U (&v)[16]) {
  transpose_round<1>(v);
  transpose_round<2>(v);
  transpose_round<4>(v);
  transpose_round<8>(v);
}
#endif
