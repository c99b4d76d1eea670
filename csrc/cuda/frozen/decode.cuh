// The value of a code, and the scale of a block.
#pragma once
#include "cuda/device/convert.h"
#include "cuda/device/memory.h"
#include "cuda/frozen/codes.h"

namespace pypeft {

// nf4: quantiles of a normal distribution (Dettmers et al., arXiv:2305.14314, appendix E). fp4: a float with one sign
// bit, two exponent bits and one mantissa bit, divided by the largest such float. Both tables equal those of
// bitsandbytes.
__constant__ const float kFourBitValues[2][16] = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0.0f, 0.0625f / 12, 8.0f / 12, 12.0f / 12, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12, -0.0f, -0.0625f / 12,
     -8.0f / 12, -12.0f / 12, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12},
};
constexpr int kTableBytes = 16 * sizeof(float);

// Stores the sixteen values in shared memory, each in a different bank. The caller must synchronise the block
// afterwards.
PYPEFT_DEVICE void fill_table(char* table, Format format) {
  if (threadIdx.x < 16) {
    store_shared(table + 4 * threadIdx.x, kFourBitValues[format == Format::fp4][threadIdx.x]);
  }
}

// The value of code `i` < 8 of the four bytes in `word`. The high half of each byte is the first code of the byte.
PYPEFT_DEVICE float four_bit_value(const char* table, uint32_t word, int i) {
  const int shift = 8 * (i / 2) + (i % 2 ? 0 : 4);
  return load_shared<float>(table + (shift == 0 ? word << 2 & 60 : word >> (shift - 2) & 60));
}

PYPEFT_DEVICE float four_bit_scale(const Codes& c, int64_t block) {
  if (!c.nested) return load_global<float>(c.scale + block);
  const float value = load_global<float>(c.map + load_global<uint8_t>(c.nested + block));
  return value * load_global<float>(c.scale + (block >> kNestedShift)) + load_global<float>(c.offset);
}

// Converts a float8 e4m3fn through a float16 whose exponent is 8 too small. GPUs before sm_89 have no float8 type.
PYPEFT_DEVICE float fp8_value(uint32_t byte) {
  const float value = unpack2<__half>((byte & 0x80) << 8 | (byte & 0x7F) << 7).x * 256.0f;
  return (byte & 0x7F) == 0x7F ? __uint_as_float(0x7FC00000) : value;
}

PYPEFT_DEVICE float int8_value(uint32_t byte) { return static_cast<float>(static_cast<int8_t>(byte)); }

}  // namespace pypeft
