// One step of a matrix product on the tensor cores: c [16 x 8] += a [16 x K] b [K x 8], operands from tiles. c is a
// Sum, whose floats total() gives.
//
// Math<T> for 16-bit T: K = 16, one instruction. Math<float>: K = 8, tf32. Without kTf32 each operand is split in three
// tf32 parts, 11, 12 and 1 bits of float's 24, and five of their nine products are summed, which keeps float's
// precision; the usual two parts and three products lose the last bit of one value in four.
//
// "Rows" is a tile whose rows run along K ([m][k] for a, [n][k] for b), "columns" one whose columns run along m or n
// ([k][m], [k][n]). A step along K is two chunks in the first, K rows in the second.
#pragma once
#include "cuda/device/tile.cuh"

namespace pypeft {

template <class T, bool kTf32 = false>
struct Math {
  using Element = T;
  static constexpr int K = 16;
  using A = uint32_t[4];
  using B = uint32_t[2];
  using Sum = float[4];

  template <class Tile>
  PYPEFT_DEVICE static void load_a_rows(A& a, char* tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, Tile::chunk(tile, m + lane % 16, k / 8 + lane / 16));
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_a_columns(A& a, char* tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(a, Tile::chunk(tile, k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
  }
  // Of columns n to n + 15.
  template <class Tile>
  PYPEFT_DEVICE static void load_b_rows(B (&b)[2], char* tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t d[4];
    ldmatrix_x4(d, Tile::chunk(tile, n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    b[0][0] = d[0], b[0][1] = d[1], b[1][0] = d[2], b[1][1] = d[3];
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_b_columns(B (&b)[2], char* tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t d[4];
    ldmatrix_x4_trans(d, Tile::chunk(tile, k + lane % 16, n / 8 + lane / 16));
    b[0][0] = d[0], b[0][1] = d[1], b[1][0] = d[2], b[1][1] = d[3];
  }
  PYPEFT_DEVICE static void mma(Sum& c, const A& a, const B& b) { mma_16816<T>(c, a, b); }
  PYPEFT_DEVICE static float (&total(Sum& c))[4] { return c; }
};

template <bool kTf32>
struct Math<float, kTf32> {
  using Element = float;
  using Sum = float[4];
  static constexpr int K = 8, kParts = kTf32 ? 1 : 3;
  struct A {
    uint32_t part[kParts][4];
  };
  struct B {
    uint32_t part[kParts][2];
  };

  template <class F>
  PYPEFT_DEVICE static void split(F& f, int i, float value) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t rounded = to_tf32(value);
      // The largest numbers would round to infinity, which is left to infinity itself.
      if (part == 0 && (rounded & 0x7FFFFFFFu) == 0x7F800000u) rounded = __float_as_uint(value) & 0xFFFFE000u;
      f.part[part][i] = rounded;
      value -= __uint_as_float(rounded);
    }
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_a_rows(A& a, char* tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t d[4];
    ldmatrix_x4(d, Tile::chunk(tile, m + lane % 16, k / 4 + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a, i, __uint_as_float(d[i]));
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_a_columns(A& a, char* tile, int m, int k) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a, i, load_shared<float>(Tile::at(tile, k + t + i / 2 * 4, m + g + i % 2 * 8)));
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_b_rows(B (&b)[2], char* tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    uint32_t d[4];
    ldmatrix_x4(d, Tile::chunk(tile, n + lane % 8 + lane / 16 * 8, k / 4 + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < 4; ++i) split(b[i / 2], i % 2, __uint_as_float(d[i]));
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_b_columns(B (&b)[2], char* tile, int n, int k) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      split(b[i / 2], i % 2, load_shared<float>(Tile::at(tile, k + t + i % 2 * 4, n + g + i / 2 * 8)));
    }
  }
  // The small products first, and all of them apart from c: the tensor cores round a running sum towards zero, and a
  // float addition of each step's own sum keeps float's precision (Ootomo and Yokota, arXiv:2203.03341).
  // Where an operand is infinite its small products may be no number; the large one says what the sum is.
  PYPEFT_DEVICE static void mma(Sum& c, const A& a, const B& b) {
    if constexpr (kTf32) {
      mma_1688_tf32(c, a.part[0], b.part[0]);
    } else {
      float d[4] = {};
      mma_1688_tf32(d, a.part[kParts - 1], b.part[0]);
      mma_1688_tf32(d, a.part[0], b.part[kParts - 1]);
      mma_1688_tf32(d, a.part[kParts / 2], b.part[0]);
      mma_1688_tf32(d, a.part[0], b.part[kParts / 2]);
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] = d[i] == d[i] ? d[i] : 0.0f;
      mma_1688_tf32(d, a.part[0], b.part[0]);
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] += d[i];
    }
  }
  PYPEFT_DEVICE static float (&total(Sum& c))[4] { return c; }
};

}  // namespace pypeft
