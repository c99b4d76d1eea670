// A tile of a matrix in shared memory, and the three ways to fill a tile.
//
// Each row of a tile is divided into chunks of 16 bytes. The chunks of a row are permuted: the chunk number is XORed
// with a number that depends on the row. One load of a warp therefore touches 32 different banks, without padding.
// ldmatrix reads the same chunk of 8 rows; the load of a transposed float fragment reads two chunks of 4 rows.
#pragma once
#include "cuda/device/convert.h"
#include "cuda/device/matrix.h"
#include "cuda/device/memory.h"

namespace pypeft {

template <class T, int kRows_, int kCols_>
struct Tile {
  using Element = T;
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPerChunk = 16 / sizeof(T);   // elements
  static constexpr int kChunks = kCols / kPerChunk;  // of a row
  static constexpr int kBytes = kRows * kCols * sizeof(T);
  static_assert(kCols % kPerChunk == 0 && (kChunks & (kChunks - 1)) == 0 && kChunks >= 2);

  // The position of chunk 0 of a row. For rows of at least 128 bytes, 8 consecutive rows have 8 different positions,
  // and 4 consecutive rows have 4 different pairs of positions. Shorter rows share 128 bytes and need fewer positions.
  PYPEFT_DEVICE static int swizzle(int row) {
    if constexpr (kChunks >= 8) return (row & 3) << 1 | (row >> 2 & 1);
    if constexpr (kChunks == 4) return (row >> 1 & 1) << 1 | (row >> 2 & 1);
    return row >> 2 & 1;
  }

  PYPEFT_DEVICE static char* chunk(char* tile, int row, int chunk) {
    return tile + (row * kChunks + (chunk ^ swizzle(row))) * 16;
  }

  PYPEFT_DEVICE static T* at(char* tile, int row, int col) {
    return reinterpret_cast<T*>(chunk(tile, row, col / kPerChunk)) + col % kPerChunk;
  }
};

// The bits of an element, and later its value: between the two nothing waits for the load.
PYPEFT_DEVICE uint32_t load_bits(const Matrix& m, int64_t offset) {
  if (m.dtype == Dtype::f32) return load_global<uint32_t>(static_cast<const uint32_t*>(m.data) + offset);
  return load_global<uint16_t>(static_cast<const uint16_t*>(m.data) + offset);
}

PYPEFT_DEVICE float value_of(uint32_t bits, Dtype dtype) {
  if (dtype == Dtype::f32) return __uint_as_float(bits);
  return dtype == Dtype::f16 ? unpack2<__half>(bits).x : unpack2<__nv_bfloat16>(bits).x;
}

PYPEFT_DEVICE float load_element(const Matrix& m, int64_t offset) { return value_of(load_bits(m, offset), m.dtype); }

PYPEFT_DEVICE void store_element(void* out, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::f32) store_global(static_cast<float*>(out) + i, value);
  if (dtype == Dtype::f16) store_global(static_cast<__half*>(out) + i, from_float<__half>(value));
  if (dtype == Dtype::bf16) store_global(static_cast<__nv_bfloat16*>(out) + i, from_float<__nv_bfloat16>(value));
}

// out[i + j] = v[j] for j < min(kCount, count); kCount is 2 or 4. If count >= kCount and i is a multiple of kCount,
// this is one store. out is the first element of a tensor that the op has allocated, aligned to 16 bytes.
template <int kCount>
PYPEFT_DEVICE void store_run(void* out, Dtype dtype, int64_t i, const float* v, int count) {
  if (count < kCount || i % kCount != 0) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (j < count) store_element(out, dtype, i + j, v[j]);
    }
  } else if (dtype == Dtype::f32) {
    float* to = static_cast<float*>(out) + i;
    if constexpr (kCount == 2) store_global(to, make_float2(v[0], v[1]));
    if constexpr (kCount == 4) store_global(to, make_float4(v[0], v[1], v[2], v[3]));
  } else {
    uint32_t pairs[kCount / 2];
#pragma unroll
    for (int j = 0; j < kCount; j += 2) {
      pairs[j / 2] = dtype == Dtype::bf16 ? pack2<__nv_bfloat16>(v[j], v[j + 1]) : pack2<__half>(v[j], v[j + 1]);
    }
    uint16_t* to = static_cast<uint16_t*>(out) + i;
    if constexpr (kCount == 2) store_global(to, pairs[0]);
    if constexpr (kCount == 4) store_global(to, make_uint2(pairs[0], pairs[1]));
  }
}

// Calls f(row, part) for the parts of this thread, of kRows rows of kParts each: numbers thread, thread + kThreads,
// ..., all in one column of parts. The compiler knows the number of iterations. It would not know the number for a loop
// that begins at threadIdx.x, and would peel such a loop.
template <int kRows, int kParts, int kThreads, class F>
PYPEFT_DEVICE void each_part(F&& f) {
  static_assert(kThreads % kParts == 0);
  constexpr int kRowsAtOnce = kThreads / kParts;
  const int first = threadIdx.x / kParts, part = threadIdx.x % kParts;
#pragma unroll
  for (int turn = 0; turn < (kRows + kRowsAtOnce - 1) / kRowsAtOnce; ++turn) {
    const int row = first + turn * kRowsAtOnce;
    if ((turn + 1) * kRowsAtOnce <= kRows || row < kRows) f(row, part);
  }
}

// Calls f for the chunks of a tile, or for its groups of 8 elements.
template <class Tile, int kThreads, class F>
PYPEFT_DEVICE void each_chunk(F&& f) {
  each_part<Tile::kRows, Tile::kChunks, kThreads>(f);
}

template <class Tile, int kThreads, class F>
PYPEFT_DEVICE void each_group(F&& f) {
  each_part<Tile::kRows, Tile::kCols / 8, kThreads>(f);
}

// tile[i][j] = m[row0 + i][col0 + j], 0 outside of m, by asynchronous copies of 16 bytes. m has the type of the tile,
// and m.vectors is true. A thread copies the chunks that each_chunk gives to the thread.
template <class Tile, int kThreads>
PYPEFT_DEVICE void fill_async(char* tile, const Matrix& m, int row0, int col0) {
  using T = typename Tile::Element;
  const int first = threadIdx.x / Tile::kChunks, col = col0 + threadIdx.x % Tile::kChunks * Tile::kPerChunk;
  const T* from = static_cast<const T*>(m.data) + (row0 + first) * m.row + col;
  each_chunk<Tile, kThreads>([&](int row, int chunk) {
    const bool inside = row0 + row < m.rows && col < m.cols;
    cp_async_16(Tile::chunk(tile, row, chunk), from + (row - first) * m.row, inside ? 16 : 0);
  });
}

// Eight floats of a row are two chunks, an even one and an odd one. If eight neighbouring threads all began with the
// even chunks of eight such groups, pairs of threads would have bank conflicts. Four of the eight begin with the odd
// chunk.
PYPEFT_DEVICE bool odd_first(int group) { return group >> 2 & 1; }

// As fill_async, for a tile of floats and an m of 16-bit values with m.vectors: each step reads 16 bytes and writes 32.
// A thread fills the groups of 8 elements that each_group calls it for.
template <class Tile, int kThreads>
PYPEFT_DEVICE void fill_widened(char* tile, const Matrix& m, int row0, int col0) {
  each_group<Tile, kThreads>([&](int row, int group) {
    const int col = col0 + group * 8;
    const int64_t offset = (row0 + row) * m.row + col;
    float v[8] = {};
    if (row0 + row < m.rows && col < m.cols) {
      const uint4 pairs = load_global<uint4>(static_cast<const uint16_t*>(m.data) + offset);
      const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 two = m.dtype == Dtype::bf16 ? unpack2<__nv_bfloat16>(words[j]) : unpack2<__half>(words[j]);
        v[2 * j] = two.x, v[2 * j + 1] = two.y;
      }
    }
    const float4 halves[2] = {make_float4(v[0], v[1], v[2], v[3]), make_float4(v[4], v[5], v[6], v[7])};
    const bool odd = odd_first(group);
    store_shared(Tile::chunk(tile, row, 2 * group + odd), odd ? halves[1] : halves[0]);
    store_shared(Tile::chunk(tile, row, 2 * group + !odd), odd ? halves[0] : halves[1]);
  });
}

// As fill_async, for any strides and types, element by element. Neighbouring threads read neighbouring elements in
// memory.
template <class Tile, int kThreads>
PYPEFT_DEVICE void fill_any(char* tile, const Matrix& m, int row0, int col0) {
  using T = typename Tile::Element;
  const bool down = m.row < m.col;
#pragma unroll 1
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kCols; i += kThreads) {
    const int row = down ? i % Tile::kRows : i / Tile::kCols, col = down ? i / Tile::kRows : i % Tile::kCols;
    const bool inside = row0 + row < m.rows && col0 + col < m.cols;
    const float value = inside ? load_element(m, (row0 + row) * m.row + (col0 + col) * m.col) : 0.0f;
    store_shared(Tile::at(tile, row, col), from_float<T>(value));
  }
}

template <class T>
inline constexpr Dtype kDtype = Dtype::f32;
template <>
inline constexpr Dtype kDtype<__nv_bfloat16> = Dtype::bf16;
template <>
inline constexpr Dtype kDtype<__half> = Dtype::f16;

// Fills a tile of a small operand, a matrix of the adapter: by fill_async where m allows it, otherwise by fill_any.
template <class Tile, int kThreads>
PYPEFT_DEVICE void fill_small(char* tile, const Matrix& m, int row0, int col0) {
  if (m.vectors && m.dtype == kDtype<typename Tile::Element>) {
    fill_async<Tile, kThreads>(tile, m, row0, col0);
  } else {
    fill_any<Tile, kThreads>(tile, m, row0, col0);
  }
}

// How a tile of a large operand is filled. This is a template argument, so that each kernel holds the code of one way.
enum class Fill { async, widened, any };

template <Fill kFill, class Tile, int kThreads>
PYPEFT_DEVICE void fill(char* tile, const Matrix& m, int row0, int col0) {
  if constexpr (kFill == Fill::async) fill_async<Tile, kThreads>(tile, m, row0, col0);
  if constexpr (kFill == Fill::widened) fill_widened<Tile, kThreads>(tile, m, row0, col0);
  if constexpr (kFill == Fill::any) fill_any<Tile, kThreads>(tile, m, row0, col0);
}

}  // namespace pypeft
