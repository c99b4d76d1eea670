// Plan. A block takes 16 rows of W (columns of the output), its 8 warps every eighth 64 (16-bit) or 32 (float) columns
// of them. W goes straight into registers, 16 bytes a load, four loads of a thread under way at once; so does X, from
// L1 and L2. The tensor cores take W as their 16-row operand and X as the 8-column one, twice where X has more than 8
// rows. A lane's 16 bytes are neighbours along K, not the columns that a fragment asks for; since the same permutation
// of K is applied to X, the product is the same. IA3's l on the inputs multiplies X in those registers. The warps' sums
// meet in 8.5 KiB of shared memory, where the low-rank term, in float, the bias, and l on the outputs join them.
// Traffic: W, lora_B or l, and out once; X and s come from L2.
#include "cuda/product/decode.h"

#include "cuda/device/fragments.cuh"
#include "cuda/product/scale_inputs.cuh"

namespace pypeft {
namespace {
constexpr int kWarps = 8, kThreads = 32 * kWarps, kCols = 16, kSumsRow = kDecodeRows + 2;

// A lane's 16 bytes of each of two rows of W (or one of X) are kSteps fragments, taken along its own columns.
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

template <class T, bool kTf32, int kEights, bool kScaled>  // eights of X's rows; scaled: its columns
__global__ void __launch_bounds__(kThreads, 2) decode_kernel(ProductArgs p) {
  using M = Math<T, kTf32>;
  using W = Words<T, kTf32>;
  constexpr int kPerLoad = 16 / sizeof(T), kPart = 4 * kPerLoad, kParts = 2, kStep = kWarps * kParts * kPart;
  float* sums = reinterpret_cast<float*>(shared_memory());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, n0 = blockIdx.x * kCols;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  auto load = [&](const Matrix& m, int row, int k, bool streamed) {
    if (row >= m.rows || k >= m.cols) return zero;
    const T* from = static_cast<const T*>(m.data) + row * m.row + k;
    return streamed ? load_global_streaming(from) : load_global<uint4>(from);
  };

  auto load_factors = [&](float (&f)[kPerLoad], int k) {
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
  };

  float c[kEights][4] = {};
#pragma unroll 2
  for (int k0 = warp * kParts * kPart; k0 < p.X.cols; k0 += kStep) {
    uint4 w[kParts][2], x[kParts][kEights];
    [[maybe_unused]] float factors[kParts][kPerLoad] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int k = k0 + part * kPart + t * kPerLoad;
#pragma unroll
      for (int h = 0; h < 2; ++h) w[part][h] = load(p.W, n0 + g + 8 * h, k, true);
#pragma unroll
      for (int e = 0; e < kEights; ++e) x[part][e] = load(p.X, g + 8 * e, k, false);
      if constexpr (kScaled) load_factors(factors[part], k);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if constexpr (kScaled) {
#pragma unroll
        for (int e = 0; e < kEights; ++e) x[part][e] = scale_chunk<T>(x[part][e], factors[part]);
      }
#pragma unroll
      for (int step = 0; step < W::kSteps; ++step) {
        typename M::A a;
        W::a(a, w[part][0], w[part][1], step);
#pragma unroll
        for (int e = 0; e < kEights; ++e) {
          typename M::B b;
          W::b(b, x[part][e], step);
          M::mma(c[e], a, b);
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_shared(sums + (warp * kCols + g + 8 * h) * kSumsRow + 8 * e + 2 * t,
                   make_float2(c[e][2 * h], c[e][2 * h + 1]));
    }
  }
  __syncthreads();
  const int col = threadIdx.x % kCols, m = threadIdx.x / kCols, n = n0 + col;
  if (m >= p.X.rows || n >= p.W.rows) return;
  float low_rank = 0;
  const Matrix &S = p.low_rank.S, &L = p.low_rank.L;
  for (int r = 0; r < S.cols; ++r) {
    low_rank += load_element(S, m * S.row + r * S.col) * load_element(L, n * L.row + r * L.col);
  }
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += load_shared<float>(sums + (w * kCols + col) * kSumsRow + m);
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

template <class T, bool kTf32>
auto kernel_for(const ProductArgs& p) {
  if (p.X.rows <= 8) return p.inputs.present ? decode_kernel<T, kTf32, 1, true> : decode_kernel<T, kTf32, 1, false>;
  return p.inputs.present ? decode_kernel<T, kTf32, 2, true> : decode_kernel<T, kTf32, 2, false>;
}
}  // namespace

void decode(const OnDevice& on, const ProductArgs& p, bool allow_tf32) {
  const auto kernel = p.X.dtype == Dtype::bf16  ? kernel_for<__nv_bfloat16, false>(p)
                      : p.X.dtype == Dtype::f16 ? kernel_for<__half, false>(p)
                      : allow_tf32              ? kernel_for<float, true>(p)
                                                : kernel_for<float, false>(p);
  launch(on, kernel, dim3(static_cast<unsigned>(ceil_div(p.W.rows, kCols))), dim3(kThreads),
         kWarps * kCols * kSumsRow * sizeof(float), p);
}

}  // namespace pypeft
