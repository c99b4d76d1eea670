// Fills a tile of a small operand in two steps: a thread requests all its elements, and later stores them.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

// Whether the rows of m can be loaded 16 bytes at a time; m.vectors says it only for the orientation given by the host.
PYPEFT_DEVICE bool has_rows_of_16_bytes(const Matrix& m) {
  const int64_t size = m.dtype == Dtype::f32 ? 4 : 2;
  return m.col == 1 && ((m.row | m.cols) * size | reinterpret_cast<int64_t>(m.data)) % 16 == 0;
}

// The tile is in the type of Tile. Rows of floats, and rows in the type of the tile, are loaded 16 bytes at a time;
// other matrices are filled by fill_any, in store().
template <class Tile, int kThreads>
struct Ahead {
  using T = typename Tile::Element;
  static constexpr int kFours = Tile::kCols / 4, kTurns = (Tile::kRows * kFours + kThreads - 1) / kThreads;

  const Matrix& m;
  const int row0, col0;
  const bool floats, chunks;
  uint4 held[kTurns];

  PYPEFT_DEVICE Ahead(const Matrix& m, int row0, int col0)
      : m(m),
        row0(row0),
        col0(col0),
        floats(m.dtype == Dtype::f32 && has_rows_of_16_bytes(m)),
        chunks(sizeof(T) == 2 && m.dtype == kDtype<T> && has_rows_of_16_bytes(m)) {
    int turn = 0;
    if (floats) {
      each_part<Tile::kRows, kFours, kThreads>([&](int row, int four) { load<float>(held[turn++], row, 4 * four); });
    } else if (chunks) {
      each_chunk<Tile, kThreads>([&](int row, int chunk) { load<T>(held[turn++], row, chunk * Tile::kPerChunk); });
    }
  }

  PYPEFT_DEVICE void store(char* tile) const {
    int turn = 0;
    if (floats) {
      each_part<Tile::kRows, kFours, kThreads>([&](int row, int four) {
        const uint4 v = held[turn++];
        T* to = Tile::at(tile, row, 4 * four);
        if constexpr (sizeof(T) == 4) store_shared(to, v);
        if constexpr (sizeof(T) == 2) {
          const uint32_t low = pack2<T>(__uint_as_float(v.x), __uint_as_float(v.y));
          store_shared(to, make_uint2(low, pack2<T>(__uint_as_float(v.z), __uint_as_float(v.w))));
        }
      });
    } else if (chunks) {
      each_chunk<Tile, kThreads>(
          [&](int row, int chunk) { store_shared(Tile::chunk(tile, row, chunk), held[turn++]); });
    } else {
      fill_any<Tile, kThreads>(tile, m, row0, col0);
    }
  }

 private:
  template <class V>
  PYPEFT_DEVICE void load(uint4& to, int row, int col) const {
    const int i = row0 + row, j = col0 + col;
    const V* from = static_cast<const V*>(m.data) + i * m.row + j;
    to = i < m.rows && j < m.cols ? load_global<uint4>(from) : make_uint4(0, 0, 0, 0);
  }
};

}  // namespace pypeft
