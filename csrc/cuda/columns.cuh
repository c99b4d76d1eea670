// What IA3 does to columns: its factors l on a tile's, and sums over the rows of a product of two matrices.
#pragma once
#include "cuda/tile.cuh"

namespace pypeft {

// 16 bytes of T as floats.
template <class T>
PYPEFT_DEVICE void unpack_chunk(float (&values)[16 / sizeof(T)], const uint4& chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 two = unpack2<T>(words[i]);
      values[2 * i] = two.x, values[2 * i + 1] = two.y;
    }
  }
}

// chunk[j] * factors[j] for 16 bytes of T, each multiplied in float and rounded once.
template <class T>
PYPEFT_DEVICE uint4 scale_chunk(const uint4& chunk, const float (&factors)[16 / sizeof(T)]) {
  float v[16 / sizeof(T)];
  unpack_chunk<T>(v, chunk);
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) words[i] = __float_as_uint(v[i] * factors[i]);
    if constexpr (sizeof(T) == 2) words[i] = pack2<T>(v[2 * i] * factors[2 * i], v[2 * i + 1] * factors[2 * i + 1]);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The factors of 16 bytes of T, which lie at `from` in T or, if not `narrow`, in float; load reads 16 bytes.
template <class T, class Load>
PYPEFT_DEVICE void unpack_factors(float (&factors)[16 / sizeof(T)], const char* from, bool narrow, Load load) {
  if (sizeof(T) == 2 && narrow) return unpack_chunk<T>(factors, load(from));
#pragma unroll
  for (int j = 0; j < int(16 / sizeof(T)); j += 4) {
    float four[4];
    unpack_chunk<float>(four, load(from + 4 * j));
#pragma unroll
    for (int i = 0; i < 4; ++i) factors[j + i] = four[i];
  }
}

// The factors of kCols columns from col0 on, 0 beyond the last, in 4 kCols bytes of shared memory: asynchronously, of
// l's own type and with l.vectors, or as floats.
template <int kCols, int kThreads, bool kAsync>
PYPEFT_DEVICE void fill_factors(char* factors, const Matrix& l, int col0) {
  if constexpr (kAsync) {
    const int size = l.dtype == Dtype::f32 ? 4 : 2, at = 16 * threadIdx.x;
    if (at >= kCols * size) return;
    const int64_t from = int64_t(col0) * size + at, left = int64_t(l.cols) * size - from;
    const int inside = static_cast<int>(min(max(left, int64_t(0)), int64_t(16)));
    cp_async_16(factors + at, static_cast<const char*>(l.data) + (inside > 0 ? from : 0), inside);
  } else {
    fill_any<Tile<float, 1, kCols>, kThreads>(factors, l, 0, col0);
  }
}

// tile[i][j] *= factors[j]. A thread takes the chunks that it filled by fill_async.
template <class Tile, int kThreads, bool kAsync>
PYPEFT_DEVICE void scale_columns(char* tile, const char* factors, Dtype l_dtype) {
  using T = typename Tile::Element;
  static_assert(kThreads % Tile::kChunks == 0, "a thread has one column of chunks");
  const int chunk = threadIdx.x % Tile::kChunks;
  float f[Tile::kPerChunk];
  const bool narrow = kAsync && l_dtype != Dtype::f32;
  unpack_factors<T>(f, factors + chunk * Tile::kPerChunk * (narrow ? 2 : 4), narrow,
                    [](const char* from) { return load_shared<uint4>(from); });
#pragma unroll
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kChunks; i += kThreads) {
    char* at = Tile::chunk(tile, i / Tile::kChunks, chunk);
    store_shared(at, scale_chunk<T>(load_shared<uint4>(at), f));
  }
}

constexpr int kSumBytes = 512;  // of a row, that a block of sum_products takes

// parts[block / across][n] = the sum over `span` rows of a[m][n] b[m][n], in float: the block's part of the columns'
// sums, `across` blocks to a row. A warp takes every kWarps-th row, 16 bytes a lane; the warps' sums meet at the end.
template <class T, int kThreads>
PYPEFT_DEVICE void sum_products(char* shared, const Matrix& a, const Matrix& b, float* parts, int block, int span) {
  constexpr int kPerChunk = 16 / sizeof(T), kCols = 32 * kPerChunk, kWarps = kThreads / 32;
  static_assert(kCols * sizeof(T) == kSumBytes);
  const int across = (a.cols + kCols - 1) / kCols, col0 = block % across * kCols, split = block / across;
  const int begin = split * span, end = min(a.rows, begin + span), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool vectors = a.vectors && b.vectors && a.cols % kPerChunk == 0;
  const T *from_a = static_cast<const T*>(a.data), *from_b = static_cast<const T*>(b.data);
  float sums[kPerChunk] = {};
  if (vectors && col0 + lane * kPerChunk < a.cols) {
#pragma unroll 4
    for (int row = begin + warp; row < end; row += kWarps) {
      const int col = col0 + lane * kPerChunk;
      float v[kPerChunk], w[kPerChunk];
      unpack_chunk<T>(v, load_global<uint4>(from_a + row * a.row + col));
      unpack_chunk<T>(w, load_global<uint4>(from_b + row * b.row + col));
#pragma unroll
      for (int j = 0; j < kPerChunk; ++j) sums[j] += v[j] * w[j];
    }
  }
  if (!vectors) {
    for (int row = begin + warp; row < end; row += kWarps) {
#pragma unroll
      for (int j = 0; j < kPerChunk; ++j) {
        const int col = col0 + j * 32 + lane;
        if (col >= a.cols) continue;
        sums[j] += to_float(load_global<T>(from_a + row * a.row + col * a.col)) *
                   to_float(load_global<T>(from_b + row * b.row + col * b.col));
      }
    }
  }
  float* meet = reinterpret_cast<float*>(shared);
  float* own = meet + warp * kCols;
  if (vectors) {
#pragma unroll
    for (int i = 0; i < kPerChunk; i += 4) {
      const int j = lane / 4 % 2 ? kPerChunk - 4 - i : i;  // of eight lanes' fours, so that no two meet in a bank
      const float4 four =
          j == 0 ? make_float4(sums[0], sums[1], sums[2], sums[3])
                 : make_float4(sums[kPerChunk - 4], sums[kPerChunk - 3], sums[kPerChunk - 2], sums[kPerChunk - 1]);
      store_shared(own + lane * kPerChunk + j, four);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPerChunk; ++j) store_shared(own + j * 32 + lane, sums[j]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kCols && col0 + i < a.cols; i += kThreads) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += load_shared<float>(meet + w * kCols + i);
    store_global(parts + int64_t(split) * a.cols + col0 + i, total);
  }
}

}  // namespace pypeft
