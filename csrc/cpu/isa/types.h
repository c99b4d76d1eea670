// Types and constants that all instruction sets share.
#pragma once
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#include "numbers.h"

#define PYPEFT_INLINE inline __attribute__((always_inline))

namespace pypeft {

// The stored elements of a tensor. simd.h converts them to and from float, because all arithmetic is in float.
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

constexpr int64_t PAD = 16;  // temporary rows are padded with zeros to a multiple of 16 floats, the widest vector

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
// The distance between temporary rows of n floats: a multiple of PAD, but not of 1 KiB, because rows at multiples of 1
// KiB fall into few cache sets.
constexpr int64_t padded(int64_t n) { return round_up(n, PAD) + (n > 0 && round_up(n, PAD) % 256 == 0 ? PAD : 0); }
constexpr int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

}  // namespace pypeft
