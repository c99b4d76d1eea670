// The epilogue of gradient.cuh: adds the sums of the warps of a block, then of the blocks, and stores the result.
#pragma once
#include "cuda/device/tile.cuh"
#include "cuda/gradient/gradient.h"
#include "cuda/sums/split_sum.cuh"

namespace pypeft::gradient {

// ------------------------------------------------------------------------------------------------------------ X B
// The address in shared memory of a warp's sum for X B at [row][r], of 16 x kRank floats. The columns are permuted so
// that neither the stores of fragments nor the loads of rows have bank conflicts.
template <int kRank>
PYPEFT_DEVICE float* inner_at(float* sums, int warp, int row, int r) {
  return sums + (warp * 16 + row) * kRank + (r ^ 8 * (kRank == 16 ? row >> 1 & 1 : row & 3));
}

// The number of the sum of this block. There is one sum for each block of rows and block of ranks; the blocks of
// columns share it. A part of the sum is [span][inner_width] floats.
PYPEFT_DEVICE unsigned inner_number() { return blockIdx.y * gridDim.z + blockIdx.z; }

template <int kRank>
PYPEFT_DEVICE float* inner_part(const GradientArgs& p, unsigned block) {
  return part_of(p.inner.split, inner_number(), gridDim.x, block, int64_t(p.span) * inner_width(p.rank, kRank));
}

// Stores `total`, the value of X B at [row][r] of the rows and ranks of this block: as a part of the sum, or as the
// result if the block has the whole sum.
template <int kRank>
PYPEFT_DEVICE void store_inner(const GradientArgs& p, int row, int r, float total) {
  const int m = blockIdx.y * p.span + row, r0 = blockIdx.z * kRank, width = inner_width(p.rank, kRank);
  if (m >= p.X.rows) return;
  if (gridDim.x > 1) {
    if (r < width) store_global(inner_part<kRank>(p, blockIdx.x) + row * width + r, total);
  } else if (r0 + r < p.rank) {
    store_element(p.inner.out, p.inner.dtype, int64_t(m) * p.rank + r0 + r, total * p.factor);
  }
}

// Run by the last block: adds the parts of all blocks of columns; each thread adds four ranks of a row at a time.
template <int kRank>
PYPEFT_DEVICE void add_inner(const GradientArgs& p) {
  const int begin = blockIdx.y * p.span, rows = min(p.X.rows - begin, p.span), width = inner_width(p.rank, kRank);
  const int64_t stride = int64_t(p.span) * width;
  for (int i = threadIdx.x; i < rows * width / 4; i += blockDim.x) {
    float total[4] = {};
    const float* from = inner_part<kRank>(p, 0) + 4 * i;
    add_parts(total, from, stride, gridDim.x);
    const int row = 4 * i / width, r = blockIdx.z * kRank + 4 * i % width;
#pragma unroll
    for (int j = 0; j < 4; ++j) total[j] *= p.factor;
    store_run<4>(p.inner.out, p.inner.dtype, int64_t(begin + row) * p.rank + r, total, p.rank - r);
  }
}

// ---------------------------------------------------------------------------------------------------------- X^T S
// Adds and stores X^T S. There is one sum for each block of columns and block of ranks; the blocks of rows share it. A
// part of the sum is [warps across][kParts][lanes] float4.
template <class S, class M, int kRank, class Sums>
PYPEFT_DEVICE void finish_outer(const GradientArgs& p, char* shared, Sums& outer, int col0, int r0, int across,
                                int down) {
  const int lane = threadIdx.x % 32;
  float sums[S::kWarpCols / 16][kRank / 8][4];
#pragma unroll
  for (int m = 0; m < S::kWarpCols / 16; ++m) {
#pragma unroll
    for (int n = 0; n < kRank / 8; ++n) {
      const float (&total)[4] = M::total(outer[m][n]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = total[i];
    }
  }
  // Calls f(sums, offset in a part, m, n) for each fragment of the warp that has an existing column and rank.
  auto each = [&](auto&& f) {
#pragma unroll
    for (int m = 0; m < S::kWarpCols; m += 16) {
#pragma unroll
      for (int n = 0; n < kRank; n += 8) {
        const int number = across * S::kParts + m / 16 * (kRank / 8) + n / 8;
        if (col0 + m < p.X.cols && r0 + n < p.rank) f(sums[m / 16][n / 8], number * 128 + lane * 4, m, n);
      }
    }
  };
  // Adds the sums of the warps that are below each other into the uppermost warp of each column.
  auto meet = [&] {
    float* memory = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int half = S::kDown / 2; half > 0; half /= 2) {
      __syncthreads();
      if (down >= half && down < 2 * half) {
        float* mine = memory + (down - half) * S::kAcross * S::kParts * 128;
        each([&](float (&v)[4], int at, int, int) { store_shared(mine + at, make_float4(v[0], v[1], v[2], v[3])); });
      }
      __syncthreads();
      if (down < half) {
        const float* theirs = memory + down * S::kAcross * S::kParts * 128;
        each([&](float (&v)[4], int at, int, int) { add_part(v, load_shared<float4>(theirs + at)); });
      }
    }
  };
  meet();
  if (gridDim.y > 1) {
    constexpr int kPart = S::kAcross * S::kParts * 128;
    const unsigned number = blockIdx.x * gridDim.z + blockIdx.z;
    float* parts = part_of(p.outer.split, number, gridDim.y, 0, kPart);
    if (down == 0) {
      each([&](float (&v)[4], int at, int, int) { store_part(parts + int64_t(blockIdx.y) * kPart + at, v); });
    }
    if (!last_of(p.outer.split, number, gridDim.y)) return;
    each([](float (&v)[4], int, int, int) { v[0] = v[1] = v[2] = v[3] = 0; });
#pragma unroll 2
    for (unsigned part = down; part < gridDim.y; part += S::kDown) {
      each([&](float (&v)[4], int at, int, int) {
        add_part(v, load_global<float4>(parts + int64_t(part) * kPart + at));
      });
    }
    meet();
  }
  if (down > 0) return;
  each([&](float (&v)[4], int, int m, int n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] *= p.factor;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int col = col0 + m + lane / 4 + h * 8, r = r0 + n + lane % 4 * 2;
      if (col >= p.X.cols) continue;
      const int64_t at = col * p.outer.row + r * p.outer.col;
      if (p.outer.col == 1) {
        store_run<2>(p.outer.out, p.outer.dtype, at, v + 2 * h, p.rank - r);
      } else {
        if (r < p.rank) store_element(p.outer.out, p.outer.dtype, at, v[2 * h]);
        if (r + 1 < p.rank) store_element(p.outer.out, p.outer.dtype, at + p.outer.col, v[2 * h + 1]);
      }
    }
  });
}

}  // namespace pypeft::gradient
