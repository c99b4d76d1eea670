// The dropout stream (pypeft_fast/ops/philox.py has its definition), and a packed mask applied to a tile.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// The mask of 8 elements: the low half of word j is 0xFFFF if element 2 j is kept, the high half if element 2 j + 1 is;
// else the half is 0.
using Keep = uint32_t[4];

// 0xFFFF in each 16-bit lane of `word` that is at least the threshold, which is below 65536. A lane is at least the
// threshold if lane + (65535 - threshold) + 1 carries beyond 16 bits: if two of three bits are 1, the highest bits of
// the two addends and the carry from the bits below.
PYPEFT_DEVICE uint32_t reaches(uint32_t word, uint32_t threshold) {
  const uint32_t rest = 0xFFFF - threshold, both = rest * 0x00010001u;
  const uint32_t below = (word & 0x7FFF7FFFu) + ((rest & 0x7FFF) + 1) * 0x00010001u;
  return spread_signs((word & both) | (below & (word | both)));
}

// The mask of 8 elements: element j is kept if lane j of Philox4x32-7 at counter `index` is at least the threshold.
PYPEFT_DEVICE void philox_keep(Keep& keep, uint64_t index, uint64_t seed, uint32_t threshold) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 7; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t product0 = uint64_t(c0) * 0xD2511F53u, product1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0, c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1, c3 = uint32_t(product0);
  }
  keep[0] = reaches(c0, threshold), keep[1] = reaches(c1, threshold);
  keep[2] = reaches(c2, threshold), keep[3] = reaches(c3, threshold);
}

// The mask as a packed byte, whose bit j is 1 if element j is kept; and the mask of a packed byte.
PYPEFT_DEVICE uint32_t packed(const Keep& keep) {
  uint32_t bits = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) bits |= keep[j] & 0x00020001u << 2 * j;
  return (bits | bits >> 16) & 0xFF;
}

PYPEFT_DEVICE void unpack(Keep& keep, uint32_t byte) {
  const uint32_t spread = byte | byte << 15;  // bits 2 j + 1 16 above bits 2 j
#pragma unroll
  for (int j = 0; j < 4; ++j) keep[j] = spread_signs(spread << (15 - 2 * j));
}

// Of the 8 elements of a tile that begin at [row][8 * group], sets those to 0 that are not kept.
template <class Tile>
PYPEFT_DEVICE void keep_group(char* tile, int row, int group, const Keep& keep) {
  constexpr int kChunks = 8 / Tile::kPerChunk;  // 1 of 16-bit values, 2 of floats
#pragma unroll
  for (int turn = 0; turn < kChunks; ++turn) {
    const bool second = kChunks == 2 && turn != odd_first(group);
    char* at = Tile::chunk(tile, row, group * kChunks + second);
    uint4 v = load_shared<uint4>(at);
    if constexpr (kChunks == 1) {
      v.x &= keep[0], v.y &= keep[1], v.z &= keep[2], v.w &= keep[3];
    } else {
      const uint32_t low = second ? keep[2] : keep[0], high = second ? keep[3] : keep[1];
      v.x &= low << 16 | (low & 0xFFFF), v.y &= low >> 16 | (low & 0xFFFF0000u);
      v.z &= high << 16 | (high & 0xFFFF), v.w &= high >> 16 | (high & 0xFFFF0000u);
    }
    store_shared(at, v);
  }
}

// Whether the same thread fills and masks each group of 8 elements of a tile. If so, no barrier is needed in between.
template <Fill kFill, class Tile>
inline constexpr bool kMasksItsOwn = kFill == Fill::widened || (kFill == Fill::async && Tile::kPerChunk == 8);

}  // namespace pypeft
