// Vectors for any CPU: the compiler's own vectors of 16 bytes (SSE2, NEON). simd.h holds the rest. No include guard:
// see for_each.h.
constexpr int W = 4;       // floats in a vector
constexpr int ROWS_1 = 8;  // rows of a register tile that is one vector wide,
constexpr int ROWS_2 = 4;  // and of one that is two vectors wide: as many rows as 16 registers hold

typedef float F __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef uint64_t D __attribute__((vector_size(16)));  // 64-bit lanes

PYPEFT_INLINE F fma(F a, F b, F c) { return a * b + c; }  // fused if the CPU has the instruction

PYPEFT_INLINE F widen_f16(const uint16_t* p) {
  F v;
  for (int i = 0; i < W; ++i) v[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(p[i]);
  return v;
}
PYPEFT_INLINE void narrow_f16(uint16_t* p, F v) {
  for (int i = 0; i < W; ++i) p[i] = torch::headeronly::detail::fp16_ieee_from_fp32_value(v[i]);
}

// v in the lanes whose bit is set, 0 in the others.
PYPEFT_INLINE F keep(F v, uint32_t bits) {
  const U lane = {1, 2, 4, 8};
  return (F)((U)v & (U)((lane & bits) == lane));
}

// The 64-bit products of the low 32 bits of each lane.
PYPEFT_INLINE D mul32(D a, D b) { return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF); }

// Each lane holds four 32-bit words, in the low halves of w0..w3, which are eight 16-bit parts. Sets bit j of the byte
// of the lane in `out` to 1 if part j >= threshold, otherwise to 0.
PYPEFT_INLINE void store_keep_bytes(uint8_t* out, D w0, D w1, D w2, D w3, uint16_t threshold) {
  for (int lane = 0; lane < W / 2; ++lane) {
    const uint64_t words[4] = {w0[lane], w1[lane], w2[lane], w3[lane]};
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= uint32_t((words[j / 2] >> 16 * (j % 2) & 0xFFFF) >= threshold) << j;
    out[lane] = (uint8_t)byte;
  }
}
