// Multiplies the columns of X by the factors of IA3, in a tile in shared memory or in 16 bytes in registers.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// chunk[j] * factors[j] for 16 bytes of T, computed in float and rounded once.
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

// Loads the factors of 16 bytes of T. At `from` the factors are stored in T if `narrow`, otherwise in float.
// load(address) reads 16 bytes.
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

// Copies the factors of the kCols columns from col0 on to 4 kCols bytes of shared memory; factors beyond the last are
// 0. With kAsync the copy is asynchronous and keeps the type of l, and l.vectors is true. Otherwise the factors are
// stored as floats.
template <int kCols, int kThreads, bool kAsync>
PYPEFT_DEVICE void fill_factors(char* factors, const Matrix& l, int col0) {
  if constexpr (kAsync) {
    const int size = l.dtype == Dtype::f32 ? 4 : 2, at = 16 * threadIdx.x;
    if (at >= kCols * size) return;
    const int64_t from = int64_t(col0) * size + at;
    cp_async_16(factors + at, static_cast<const char*>(l.data) + from, from < int64_t(l.cols) * size ? 16 : 0);
  } else {
    fill_any<Tile<float, 1, kCols>, kThreads>(factors, l, 0, col0);
  }
}

// tile[i][j] *= factors[j]. A thread multiplies the chunks that it has filled by fill_async.
template <class Tile, int kThreads, bool kAsync>
PYPEFT_DEVICE void scale_columns(char* tile, const char* factors, Dtype l_dtype) {
  using T = typename Tile::Element;
  static_assert(kThreads % Tile::kChunks == 0, "a thread has one column of chunks");
  const int chunk = threadIdx.x % Tile::kChunks;
  float f[Tile::kPerChunk];
  const bool narrow = kAsync && l_dtype != Dtype::f32;
  unpack_factors<T>(f, factors + chunk * Tile::kPerChunk * (narrow ? 2 : 4), narrow,
                    [](const char* from) { return load_shared<uint4>(from); });
  each_chunk<Tile, kThreads>([&](int row, int column) {
    char* at = Tile::chunk(tile, row, column);
    store_shared(at, scale_chunk<T>(load_shared<uint4>(at), f));
  });
}

}  // namespace pypeft
