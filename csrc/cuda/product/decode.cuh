// The code that decode.cu and decode_codes.cu share: fragments from 16 bytes of a row, and the epilogue.
#pragma once
#include "cuda/device/fragments.cuh"
#include "cuda/product/decode.h"
#include "cuda/product/scale_inputs.cuh"

namespace pypeft {

constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps, kDecodeCols = 16;
constexpr int kSumsRow = kDecodeRows + 2, kSumsBytes = kDecodeWarps * kDecodeCols * kSumsRow * sizeof(float);

// The fragments of kSteps steps along K, from the 16 bytes that a lane holds of two rows of W, or of one row of X.
template <class T, bool kTf32>
struct Words {
  using M = Math<T, kTf32>;
  static constexpr int kSteps = 2;
  PYPEFT_DEVICE static void a(typename M::A& f, const uint4& upper, const uint4& lower, int step) {
    const uint32_t u[4] = {upper.x, upper.y, upper.z, upper.w}, l[4] = {lower.x, lower.y, lower.z, lower.w};
    const uint32_t four[4] = {u[2 * step], l[2 * step], u[2 * step + 1], l[2 * step + 1]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) f[i] = four[i];
      if constexpr (sizeof(T) == 4) M::split(f, i, __uint_as_float(four[i]));
    }
  }
  PYPEFT_DEVICE static void b(typename M::B& f, const uint4& row, int step) {
    const uint32_t w[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (sizeof(T) == 2) f[i] = w[2 * step + i];
      if constexpr (sizeof(T) == 4) M::split(f, i, __uint_as_float(w[2 * step + i]));
    }
  }
};

// Adds to c the product of 16 bytes of two rows of W with the 16 bytes of the same columns of the rows of X.
template <class T, bool kTf32, int kEights>
PYPEFT_DEVICE void multiply(float (&c)[kEights][4], const uint4& upper, const uint4& lower, const uint4 (&x)[kEights]) {
  using M = Math<T, kTf32>;
  using W = Words<T, kTf32>;
#pragma unroll
  for (int step = 0; step < W::kSteps; ++step) {
    typename M::A a;
    W::a(a, upper, lower, step);
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      typename M::B b;
      W::b(b, x[e], step);
      M::mma(c[e], a, b);
    }
  }
}

// 16 bytes of a row of X that begin at column k; 0 if the row or the column does not exist.
template <class T>
PYPEFT_DEVICE uint4 load_inputs(const Matrix& X, int row, int k) {
  if (row >= X.rows || k >= X.cols) return make_uint4(0, 0, 0, 0);
  return load_global<uint4>(static_cast<const T*>(X.data) + row * X.row + k);
}

// The factors of the columns in the 16 bytes that begin at column k.
template <class T>
PYPEFT_DEVICE void load_input_factors(float (&f)[16 / sizeof(T)], const ProductArgs& p, int k) {
  constexpr int kPerLoad = 16 / sizeof(T);
  if (k >= p.X.cols) return;
  const Matrix& l = p.inputs.factors;
  if (!l.vectors) {
#pragma unroll
    for (int j = 0; j < kPerLoad; ++j) f[j] = load_element(l, (k + j) * l.col);
  } else {
    const bool narrow = l.dtype != Dtype::f32;
    unpack_factors<T>(f, static_cast<const char*>(l.data) + int64_t(k) * (narrow ? 2 : 4), narrow,
                      [](const char* from) { return load_global<uint4>(from); });
  }
}

// The epilogue: adds the sums c of the warps in kSumsBytes of shared memory, adds the low-rank term (in float) and the
// bias, multiplies by the scale, and stores the output. n0 is the first output column of the block.
template <class T, int kEights>
PYPEFT_DEVICE void finish_decoding(const ProductArgs& p, const float (&c)[kEights][4], float* sums, int n0) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_shared(sums + (warp * kDecodeCols + g + 8 * h) * kSumsRow + 8 * e + 2 * t,
                   make_float2(c[e][2 * h], c[e][2 * h + 1]));
    }
  }
  __syncthreads();
  const int col = threadIdx.x % kDecodeCols, m = threadIdx.x / kDecodeCols, n = n0 + col;
  if (m >= p.X.rows || n >= p.W.rows) return;
  float low_rank = 0;
  const Matrix &S = p.low_rank.S, &L = p.low_rank.L;
  for (int r = 0; r < S.cols; ++r) {
    low_rank += load_element(S, m * S.row + r * S.col) * load_element(L, n * L.row + r * L.col);
  }
  float total = 0;
#pragma unroll
  for (int w = 0; w < kDecodeWarps; ++w) total += load_shared<float>(sums + (w * kDecodeCols + col) * kSumsRow + m);
  total += p.low_rank.factor * low_rank;
  const Epilogue& end = p.epilogue;
  auto bias = [&] { return to_float(load_global<T>(static_cast<const T*>(end.bias) + n * end.bias_stride)); };
  if (end.bias && !end.bias_last) total += bias();
  const int64_t at = int64_t(m) * p.W.rows + n;
  if (end.z) store_global(static_cast<T*>(end.z) + at, from_float<T>(total));
  if (end.scale.present) total *= load_element(end.scale.factors, n * end.scale.factors.col);
  if (end.bias && end.bias_last) total += bias();
  store_global(static_cast<T*>(p.out) + at, from_float<T>(total));
}

// Calls run<T, kTf32, kEights, kScaled>(). kEights is the number of groups of 8 rows of X. kScaled says whether the
// columns of X have factors.
template <class F>
void dispatch_decoding(const ProductArgs& p, bool allow_tf32, F&& run) {
  auto of_type = [&]<class T, bool kTf32>() {
    auto of_rows = [&]<int kEights>() {
      p.inputs.present ? run.template operator()<T, kTf32, kEights, true>()
                       : run.template operator()<T, kTf32, kEights, false>();
    };
    p.X.rows <= 8 ? of_rows.template operator()<1>() : of_rows.template operator()<2>();
  };
  if (p.X.dtype == Dtype::bf16) return of_type.template operator()<__nv_bfloat16, false>();
  if (p.X.dtype == Dtype::f16) return of_type.template operator()<__half, false>();
  allow_tf32 ? of_type.template operator()<float, true>() : of_type.template operator()<float, false>();
}

}  // namespace pypeft
