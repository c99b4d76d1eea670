// The product of a bfloat16 matrix with a matrix of an adapter in float, on the tensor cores in bfloat16.
//
// A float is the sum of three bfloat16 values: its first 8 bits, the next 8 and the last 8. Each of the three products
// with a bfloat16 value is exact in float. The parts are truncated: a rounded first part may overflow, and truncated
// parts have the sign of the float.
#pragma once
#include "cuda/device/fragments.cuh"

namespace pypeft {

// The parts of two floats, each as a register of a fragment. If a float is infinite, its smaller parts are NaN.
PYPEFT_DEVICE void split_in_parts(uint32_t (&parts)[3], float low, float high) {
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    parts[part] = truncate2(low, high);
    const float2 taken = unpack2<__nv_bfloat16>(parts[part]);
    low -= taken.x, high -= taken.y;
  }
}

// The same interface as Math of fragments.cuh, for an a of bfloat16 values and a b of floats in parts. A tile of b is
// three tiles in shared memory, one for each part.
struct Parts {
  using Element = __nv_bfloat16;
  static constexpr int K = 16;
  using Products = Math<Element>;
  using A = Products::A;
  using B = uint32_t[3][2];
  using Sum = float[2][4];  // of the products with the first parts, and of the others

  template <class Tile>
  PYPEFT_DEVICE static void load_a_rows(A& a, char* tile, int m, int k) {
    Products::load_a_rows<Tile>(a, tile, m, k);
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_a_columns(A& a, char* tile, int m, int k) {
    Products::load_a_columns<Tile>(a, tile, m, k);
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_b_rows(B (&b)[2], char* tile, int n, int k) {
    each_part_of(b, tile, Tile::kBytes, [&](auto& two, char* part) { Products::load_b_rows<Tile>(two, part, n, k); });
  }
  template <class Tile>
  PYPEFT_DEVICE static void load_b_columns(B (&b)[2], char* tile, int n, int k) {
    each_part_of(b, tile, Tile::kBytes,
                 [&](auto& two, char* part) { Products::load_b_columns<Tile>(two, part, n, k); });
  }
  // The fragments of rows k to k + 15 and columns n to n + 7 of b in global memory.
  PYPEFT_DEVICE static void load_b_global(B& b, const Matrix& m, int n, int k) {
    const int column = n + threadIdx.x % 32 / 4, row = k + threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float two[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = row + 8 * half + i;
        two[i] = at < m.rows && column < m.cols ? load_element(m, at * m.row + column * m.col) : 0.0f;
      }
      uint32_t parts[3];
      split_in_parts(parts, two[0], two[1]);
#pragma unroll
      for (int part = 0; part < 3; ++part) b[part][half] = parts[part];
    }
  }
  // The tensor cores round a running sum towards zero. The sum of each step is therefore added in float; this does not
  // matter for the small products.
  PYPEFT_DEVICE static void mma(Sum& c, const A& a, const B& b) {
    float d[4] = {};
    Products::mma(d, a, b[0]);
    Products::mma(c[1], a, b[2]);
    Products::mma(c[1], a, b[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[0][i] += d[i];
  }
  // The whole sum. If an operand is infinite, the sum of the small products may be NaN, and the other sum is infinite
  // or NaN, as the whole sum should be.
  PYPEFT_DEVICE static float (&total(Sum& c))[4] {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[0][i] += c[1][i] == c[1][i] ? c[1][i] : 0.0f;
    return c[0];
  }

 private:
  template <class Load>
  PYPEFT_DEVICE static void each_part_of(B (&b)[2], char* tile, int bytes, Load load) {
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      Products::B two[2];
      load(two, tile + part * bytes);
#pragma unroll
      for (int n = 0; n < 2; ++n) b[n][part][0] = two[n][0], b[n][part][1] = two[n][1];
    }
  }
};

}  // namespace pypeft
