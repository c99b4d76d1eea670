// The tiles of a matrix of an adapter that a kernel multiplies, one tile a step, with the tiles of a large matrix.
//
// In step i of its loop a kernel calls load(i + 1) first. After the barrier that completes the tiles of the step, it
// calls copy(i + kStages - 1), multiplies by tile(i), and then calls store(i + 1). Before the loop it calls copy for
// the first kStages - 1 steps, then load(0) and store(0). Each function also takes the first row and column of the
// tile.
#pragma once
#include "cuda/device/parts.cuh"

namespace pypeft {

// Tiles in the type of the products: filled by cp.async, or by the threads, kStages - 1 steps ahead.
template <class M, int kRows, int kCols, int kThreads, int kStages>
struct AdapterTiles {
  using Tile = pypeft::Tile<typename M::Element, kRows, kCols>;
  static constexpr int kBytes = kStages * Tile::kBytes;

  const Matrix& m;
  char* memory;

  PYPEFT_DEVICE AdapterTiles(const Matrix& m, char* memory) : m(m), memory(memory) {}
  PYPEFT_DEVICE char* tile(int step) const { return memory + step % kStages * Tile::kBytes; }
  PYPEFT_DEVICE void copy(int step, int row0, int col0) { fill_small<Tile, kThreads>(tile(step), m, row0, col0); }
  PYPEFT_DEVICE void load(int, int) {}
  PYPEFT_DEVICE void store(int, int, int) const {}
};

// Tiles in parts. A thread loads four floats of a row at a time one step ahead, and splits them after the products of
// the step: each element is split once a block. If m does not allow loads of 16 bytes, the elements are loaded after
// the products. Two tiles are enough, because the barrier of step i comes after the products of step i - 1, which are
// the last to read the tile that is stored in step i.
template <int kRows, int kCols, int kThreads, int kStages>
struct AdapterTiles<Parts, kRows, kCols, kThreads, kStages> {
  using Tile = pypeft::Tile<Parts::Element, kRows, kCols>;
  static constexpr int kTileBytes = 3 * Tile::kBytes, kBytes = 2 * kTileBytes, kFours = kCols / 4;
  static constexpr int kTurns = (kRows * kFours + kThreads - 1) / kThreads;

  const Matrix& m;
  char* memory;
  float4 ahead[kTurns];

  PYPEFT_DEVICE AdapterTiles(const Matrix& m, char* memory) : m(m), memory(memory) {}
  PYPEFT_DEVICE char* tile(int step) const { return memory + step % 2 * kTileBytes; }
  PYPEFT_DEVICE void copy(int, int, int) {}
  PYPEFT_DEVICE void load(int row0, int col0) {
    if (!by_fours()) return;
    int turn = 0;
    each_part<kRows, kFours, kThreads>([&](int row, int four) {
      const int i = row0 + row, j = col0 + 4 * four;
      const float* from = static_cast<const float*>(m.data) + i * m.row + j;
      ahead[turn++] = i < m.rows && j < m.cols ? load_global<float4>(from) : make_float4(0, 0, 0, 0);
    });
  }
  PYPEFT_DEVICE void store(int step, int row0, int col0) const {
    if (by_fours()) {
      int turn = 0;
      each_part<kRows, kFours, kThreads>([&](int row, int four) { split(tile(step), row, four, ahead[turn++]); });
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < kRows * kFours; i += kThreads) {
        const int row = i / kFours, four = i % kFours;
        float v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int from = row0 + row, at = col0 + 4 * four + k;
          v[k] = from < m.rows && at < m.cols ? load_element(m, from * m.row + at * m.col) : 0.0f;
        }
        split(tile(step), row, four, make_float4(v[0], v[1], v[2], v[3]));
      }
    }
  }

 private:
  PYPEFT_DEVICE bool by_fours() const { return m.vectors && m.dtype == Dtype::f32; }
  PYPEFT_DEVICE static void split(char* tile, int row, int four, const float4& v) {
    uint32_t low[3], high[3];
    split_in_parts(low, v.x, v.y);
    split_in_parts(high, v.z, v.w);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      store_shared(Tile::at(tile + part * Tile::kBytes, row, 4 * four), make_uint2(low[part], high[part]));
    }
  }
};

}  // namespace pypeft
