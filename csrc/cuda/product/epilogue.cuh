// The epilogue of gemm.cuh's kernel.
//
// The accumulators of a lane, for the shape S of gemm.cuh: sums[m][n][2 h + i] is the element (row + 16 m + 8 h,
// col + 8 n + i) of the tile, where (row, col) is the element of sums[0][0][0].
#pragma once
#include "cuda/device/tile.cuh"
#include "cuda/product/product.h"
#include "cuda/sums/column_sum.cuh"

namespace pypeft::gemm {

// Returns `value`. The compiler does not see that the result equals `value`, so that a number computed from the result
// is computed at this place, and holds no register before.
PYPEFT_DEVICE int computed_here(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

template <class S>
struct BlockEpilogue {
  using T = typename S::T;
  using Out = Tile<T, S::kM, S::kN>;
  using Sums = float[S::kWarpM / 16][S::kWarpN / 8][4];
  static constexpr int kThreads = S::kThreads, kWarpsDown = S::kM / S::kWarpM;

  int m0, n0, rows, cols;  // the first row and column of the tile in the output; the size of the output
  int row, col;            // the element of the tile that sums[0][0][0] is

  // Calls f(sum, value) for every accumulator, where value is load(n) for the output column n of the accumulator. Each
  // lane loads the value of one of the 32 columns of its warp.
  template <class Load, class F>
  PYPEFT_DEVICE void by_column(Sums& sums, Load load, F f) const {
    static_assert(S::kWarpN == 32);
    const int lane = threadIdx.x % 32, first = lane % 4 * 2, at = n0 + col - first + lane;
    const float loaded = at < cols ? load(at) : 0.0f;
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float value = __shfl_sync(~0u, loaded, 8 * n + first + i);
#pragma unroll
        for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) f(sums[m][n][2 * h + i], value);
        }
      }
    }
  }

  // Stores the tile to out [rows, cols], contiguous, through shared memory. A thread stores 16 bytes of a row at a time
  // if the rows of out are aligned to 16 bytes, otherwise element by element.
  PYPEFT_DEVICE void store(char* shared, const Sums& sums, void* out) const {
    const bool vectors = cols % Out::kPerChunk == 0;
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
      for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          T* at = Out::at(shared, row + 16 * m + 8 * h, col + 8 * n);
          const float low = sums[m][n][2 * h], high = sums[m][n][2 * h + 1];
          if constexpr (sizeof(T) == 2) store_shared(at, pack2<T>(low, high));
          if constexpr (sizeof(T) == 4) store_shared(at, make_float2(low, high));
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < S::kM * Out::kChunks; i += kThreads) {
      const int r = i / Out::kChunks, chunk = i % Out::kChunks, c = n0 + chunk * Out::kPerChunk;
      if (m0 + r >= rows || c >= cols) continue;
      char* from = Out::chunk(shared, r, chunk);
      T* to = static_cast<T*>(out) + int64_t(m0 + r) * cols + c;
      if (vectors) {
        store_global(to, load_shared<uint4>(from));
      } else {
        const int count = min(cols - c, Out::kPerChunk);
        for (int j = 0; j < count; ++j) store_global(to + j, load_shared<T>(reinterpret_cast<T*>(from) + j));
      }
    }
  }

  // Adds up the part of this tile of the gradient of the factors on the columns; `sums` are not scaled yet. The lanes
  // of a column add by shuffles, the warps of a column through shared memory, and the tiles of a column as in
  // column_sum.cuh.
  PYPEFT_DEVICE void sum_rows(char* shared, const Sums& sums, const ColumnSum& gradient) const {
    static_assert(Out::kBytes + kWarpsDown * S::kN * 4 <= S::kBytes);
    float* meet = reinterpret_cast<float*>(shared + Out::kBytes);
    fill_small<Out, kThreads>(shared, gradient.by, m0, n0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
      float totals[2] = {};
#pragma unroll
      for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int r = row + 16 * m + 8 * h;
          if (m0 + r >= rows) continue;  // with an infinite weight the sums of rows that do not exist are NaN
          const T* at = Out::at(shared, r, col + 8 * n);
          float2 factors;
          if constexpr (sizeof(T) == 2) factors = unpack2<T>(load_shared<uint32_t>(at));
          if constexpr (sizeof(T) == 4) factors = load_shared<float2>(at);
          totals[0] += sums[m][n][2 * h] * factors.x, totals[1] += sums[m][n][2 * h + 1] * factors.y;
        }
      }
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
#pragma unroll
        for (float& total : totals) total += __shfl_xor_sync(~0u, total, lanes);
      }
      const int lane = threadIdx.x % 32;
      if (lane < 4) store_shared(meet + row / S::kWarpM * S::kN + col + 8 * n, make_float2(totals[0], totals[1]));
    }
    __syncthreads();
    store_columns<S::kN, kThreads>(gradient, cols, n0, computed_here(m0) / S::kM, [&](int n) {
      float total = 0;
#pragma unroll
      for (int warp = 0; warp < kWarpsDown; ++warp) total += load_shared<float>(meet + warp * S::kN + n);
      return total;
    });
  }
};

}  // namespace pypeft::gemm
