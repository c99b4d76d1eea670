// Small definitions that the kernels for CPUs and for GPUs share.
#pragma once
#include <cmath>
#include <cstdint>

namespace pypeft {

enum class Dtype : int { f32, bf16, f16 };

constexpr int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// T: an element is dropped if its 16-bit part of the dropout stream is below T. Ties round to even, as in Python. The
// ops' checks ensure that T is at most 65535.
inline uint16_t dropout_threshold(double p) { return static_cast<uint16_t>(std::nearbyint(p * 65536)); }
// What a kept element is multiplied by: exactly 1 / (the probability of being kept).
inline double dropout_scale(double p) { return 65536.0 / (65536 - dropout_threshold(p)); }

}  // namespace pypeft
