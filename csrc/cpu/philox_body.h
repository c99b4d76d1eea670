// The dropout stream, for every instruction set (for_each.h): Philox4x32 with 7 rounds; each counter gives one byte of
// the packed mask. Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
struct Philox {
  uint64_t key[7][2];  // the key of each round, in the low 32 bits
  uint16_t threshold;  // an element is dropped if its 16-bit part is below the threshold
};

inline Philox philox(int64_t seed, uint16_t threshold) {
  Philox p = {};
  p.threshold = threshold;
  uint32_t low = (uint32_t)seed, high = (uint32_t)((uint64_t)seed >> 32);
  for (int round = 0; round < 7; ++round, low += 0x9E3779B9, high += 0xBB67AE85) {
    p.key[round][0] = low;
    p.key[round][1] = high;
  }
  return p;
}

// Computes the W/2 mask bytes of `counters`. Each 32-bit word is in the low half of a 64-bit lane. The high halves may
// hold any value, because mul32 ignores them: the low word of a product needs no mask, and the high word needs one
// shift.
PYPEFT_INLINE void philox_bytes(const Philox& p, D counters, uint8_t* out) {
  const D m0 = D{} + 0xD2511F53, m1 = D{} + 0xCD9E8D57;
  D c0 = counters, c1 = counters >> 32, c2 = {}, c3 = {};
#pragma GCC unroll 7
  for (int round = 0; round < 7; ++round) {
    const D product0 = mul32(c0, m0), product1 = mul32(c2, m1);
    c0 = product1 >> 32 ^ c1 ^ p.key[round][0];
    c1 = product1;
    c2 = product0 >> 32 ^ c3 ^ p.key[round][1];
    c3 = product0;
  }
  store_keep_bytes(out, c0, c1, c2, c3, p.threshold);
}

// out[i] = mask byte first + i of the stream, for i < n.
inline void philox_mask(const Philox& p, uint64_t first, int64_t n, uint8_t* out) {
  constexpr int BYTES = W / 2;
  D counters;
  for (int lane = 0; lane < BYTES; ++lane) counters[lane] = first + lane;
  int64_t i = 0;
  for (; i + BYTES <= n; i += BYTES, counters += BYTES) philox_bytes(p, counters, out + i);
  if (i < n) {
    uint8_t all[BYTES];
    philox_bytes(p, counters, all);
    __builtin_memcpy(out + i, all, n - i);
  }
}
