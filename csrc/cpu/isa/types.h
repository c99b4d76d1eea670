// Names that all instruction sets share.
#pragma once
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "numbers.h"

#define PYPEFT_INLINE inline __attribute__((always_inline))

namespace pypeft {

// Elements of a tensor as they lie in memory. Arithmetic is on float only; simd.h widens and narrows.
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

constexpr int64_t PAD = 16;  // floats: scratch rows are padded with zeros to a multiple, so the widest vector fits

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
// The distance between scratch rows of n floats: padded, and no multiple of 1 KiB, where rows fall into few cache sets.
constexpr int64_t padded(int64_t n) { return round_up(n, PAD) + (n > 0 && round_up(n, PAD) % 256 == 0 ? PAD : 0); }
constexpr int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

}  // namespace pypeft
