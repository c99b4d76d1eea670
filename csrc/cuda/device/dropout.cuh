// The dropout stream (pypeft_fast/ops/philox.py has its definition), and a packed mask applied to a tile.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// Byte `index` of the packed mask: bit j is 1 if lane j of Philox4x32-7 at counter `index` is at least the threshold.
PYPEFT_DEVICE uint32_t philox_byte(uint64_t index, uint64_t seed, uint32_t threshold) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 7; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t product0 = uint64_t(c0) * 0xD2511F53u, product1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0, c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1, c3 = uint32_t(product0);
  }
  const uint32_t words[4] = {c0, c1, c2, c3};
  uint32_t byte = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    byte |= uint32_t((words[j] & 0xFFFF) >= threshold) << 2 * j;
    byte |= uint32_t((words[j] >> 16) >= threshold) << (2 * j + 1);
  }
  return byte;
}

// Of the 8 elements of a tile that begin at [row][8 * group], sets element j to 0 if bit j of `byte` is 0.
template <class Tile>
PYPEFT_DEVICE void keep_group(char* tile, int row, int group, uint32_t byte) {
  constexpr int kChunks = 8 / Tile::kPerChunk;  // 1 of 16-bit values, 2 of floats
#pragma unroll
  for (int turn = 0; turn < kChunks; ++turn) {
    const int i = kChunks == 1 ? 0 : turn ^ odd_first(group);
    char* at = Tile::chunk(tile, row, group * kChunks + i);
    uint4 v = load_shared<uint4>(at);
    uint32_t* words[4] = {&v.x, &v.y, &v.z, &v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kChunks == 1) {
        *words[j] &= (byte >> 2 * j & 1 ? 0xFFFFu : 0u) | (byte >> (2 * j + 1) & 1 ? 0xFFFF0000u : 0u);
      } else {
        if (!(byte >> (4 * i + j) & 1)) *words[j] = 0;
      }
    }
    store_shared(at, v);
  }
}

// Whether the same thread fills and masks each group of 8 elements of a tile. If so, no barrier is needed in between.
template <Fill kFill, class Tile>
inline constexpr bool kMasksItsOwn = kFill == Fill::widened || (kFill == Fill::async && Tile::kPerChunk == 8);

}  // namespace pypeft
