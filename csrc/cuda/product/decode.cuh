// The code that decode.cu and decode_codes.cu share: fragments from 16 bytes of a row, and the epilogue.
#pragma once
#include "cuda/device/fragments.cuh"
#include "cuda/product/decode_low_rank.cuh"
#include "cuda/product/scale_inputs.cuh"

namespace pypeft {

constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps;
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

// 16 bytes of a row that begin at column k; 0 where the row or a column does not exist. With Fill::async the rows allow
// loads of 16 bytes; with Fill::any the strides may be any.
template <class T, Fill kFill>
PYPEFT_DEVICE uint4 load_inputs(const Matrix& m, int row, int k) {
  if (row >= m.rows || k >= m.cols) return make_uint4(0, 0, 0, 0);
  if constexpr (kFill == Fill::async) return load_global<uint4>(static_cast<const T*>(m.data) + row * m.row + k);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < int(16 / sizeof(T)); ++i) {
    const uint32_t bits = k + i < m.cols ? load_bits(m, row * m.row + (k + i) * m.col) : 0;
    words[i * sizeof(T) / 4] |= bits << i * sizeof(T) % 4 * 8;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
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

// The epilogue: adds the sums of the warps, the low-rank term (in float) and the bias, multiplies by the scale, and
// stores the output. Its operands are requested before the loop along K, so that no load is waited for after the loop;
// S after the loop if the launch overlaps with the one that stores S. A thread holds one element of S for every 16
// ranks, up to kRanks, its part of L, and the bias and the factor of its column of the output. Larger ranks are loaded
// in further rounds, after the loop. Without kLowRank there is no low-rank term.
template <class T, class Args, bool kLowRank>
struct DecodeEnd {
  using Tiles = RankTiles<T>;
  using Factor = std::conditional_t<std::is_same_v<Args, ProductArgs>, SharedFactor<T>, FactorOfRow<T>>;
  static constexpr int kBytes = kSumsBytes + Tiles::kBytes;
  static_assert(kDecodeThreads == kDecodeRows * 16);

  const Args& p;
  const int n0, row, col;  // the block's first column of the output; a place in a tile, and of the thread's output
  Factor L;
  uint32_t s[Tiles::kParts], bias, factor;

  PYPEFT_DEVICE DecodeEnd(const Args& p, int n0)
      : p(p), n0(n0), row(threadIdx.x / 16), col(threadIdx.x % 16), L(p, n0, row, col), bias(0), factor(0) {
    if constexpr (kLowRank) {
      L.load(0);
      if (!p.low_rank.overlaps) load_S(0);
    }
    const int n = n0 + col;
    const Epilogue& end = p.epilogue;
    if (n >= p.W.rows) return;
    if (end.bias) bias = load_bits(bias_row(), n * end.bias_stride);
    if (end.scale.present) factor = load_bits(end.scale.factors, n * end.scale.factors.col);
  }

  PYPEFT_DEVICE Matrix bias_row() const {
    return {p.epilogue.bias, 0, p.epilogue.bias_stride, 1, p.W.rows, kDtype<T>, false};
  }

  PYPEFT_DEVICE void load_S(int r0) {
    const Matrix& S = p.low_rank.S;
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      const int r = r0 + 16 * part + col;
      s[part] = row < S.rows && r < S.cols ? load_bits(S, row * S.row + r * S.col) : 0;
    }
  }

  PYPEFT_DEVICE void store_ranks(char* tiles) const {
#pragma unroll
    for (int part = 0; part < Tiles::kParts; ++part) {
      char* tile = Tiles::of_S(tiles, 16 * part);
      store_shared(Tiles::Tile16::at(tile, row, col), value_of(s[part], p.low_rank.S.dtype));
    }
    L.store(tiles);
  }

  // The warps' sums c meet in shared memory, where the low-rank term, in float, the bias, and l on the outputs join
  // them. `shared`: kBytes.
  template <int kEights>
  PYPEFT_DEVICE void finish(const float (&c)[kEights][4], char* shared) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float* sums = reinterpret_cast<float*>(shared);
    char* tiles = shared + kSumsBytes;
    if (kLowRank && p.low_rank.overlaps) {
      wait_for_launch_before();
      load_S(0);
    }
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        store_shared(sums + (warp * kDecodeCols + g + 8 * h) * kSumsRow + 8 * e + 2 * t,
                     make_float2(c[e][2 * h], c[e][2 * h + 1]));
      }
    }
    const int ranks = kLowRank ? p.low_rank.S.cols : 0;
    if (ranks > 0) store_ranks(tiles);
    __syncthreads();
    float low_rank = kLowRank ? L.multiply(0, tiles, 0) : 0;
    for (int r = Tiles::kRanks; r < ranks; r += Tiles::kRanks) {
      load_S(r);
      L.load(r);
      __syncthreads();
      store_ranks(tiles);
      __syncthreads();
      low_rank = L.multiply(low_rank, tiles, r);
    }
    const int n = n0 + col;
    if (row >= p.X.rows || n >= p.W.rows) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) total += load_shared<float>(sums + (w * kDecodeCols + col) * kSumsRow + row);
    total += L.factor() * low_rank;
    const Epilogue& end = p.epilogue;
    const int64_t at = int64_t(row) * p.W.rows + n;
    if (end.bias && !end.bias_last) total += value_of(bias, kDtype<T>);
    if (end.z) store_global(static_cast<T*>(end.z) + at, from_float<T>(total));
    if (end.scale.present) total *= value_of(factor, end.scale.factors.dtype);
    if (end.bias && end.bias_last) total += value_of(bias, kDtype<T>);
    store_global(static_cast<T*>(p.out) + at, from_float<T>(total));
  }
};

// Launches a kernel of decoding, with `shared` bytes of shared memory for each block.
template <class Args>
void launch_decoding(const OnDevice& on, void (*kernel)(Args), size_t shared, Args p) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.W.rows, kDecodeCols))), threads(kDecodeThreads);
  bool& overlaps = p.low_rank.overlaps;
  overlaps = overlaps && can_overlap(on, reinterpret_cast<const void*>(kernel));
  overlaps ? launch_overlapping(on, kernel, grid, threads, shared, p) : launch(on, kernel, grid, threads, shared, p);
}

// Calls run<T, kTf32, kEights>(). kEights is the number of groups of 8 rows of X.
template <class F>
void dispatch_decoding(const ProductArgs& p, bool allow_tf32, F&& run) {
  auto of_type = [&]<class T, bool kTf32>() {
    p.X.rows <= 8 ? run.template operator()<T, kTf32, 1>() : run.template operator()<T, kTf32, 2>();
  };
  if (p.X.dtype == Dtype::bf16) return of_type.template operator()<__nv_bfloat16, false>();
  if (p.X.dtype == Dtype::f16) return of_type.template operator()<__half, false>();
  allow_tf32 ? of_type.template operator()<float, true>() : of_type.template operator()<float, false>();
}

}  // namespace pypeft
