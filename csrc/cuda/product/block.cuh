// The shapes of the tiles of gemm.cuh, and the two products of a block: a step along K, and the low-rank product.
#pragma once
#include "cuda/device/ahead.cuh"
#include "cuda/device/fragments.cuh"
#include "cuda/product/product.h"

namespace pypeft::gemm {
constexpr int kBlockK = 32, kStages = 3;

template <class T_, int kM_, int kN_, int kWarpM_, int kWarpN_>
struct Shape {
  using T = T_;
  static constexpr int kM = kM_, kN = kN_, kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kThreads = 32 * (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kStageBytes = (kM + kN) * kBlockK * sizeof(T);
  static constexpr int kMaskBytes = kM * kN / 8;
  static constexpr int kFactorsBytes = kBlockK * 4;
  static constexpr int kBytes = kStages * kStageBytes;  // without the mask, and without kFactorsBytes a stage
  static_assert(kBytes >= Tile<T, kM, kN>::kBytes, "the output leaves through the stages' memory");
  static_assert(kBytes >= kThreads / 32 * kSumBytes / int(sizeof(T)) * 4, "warps' sums meet in the stages' memory");
};

template <class S, class M, bool kColumns, bool kAsync>
struct Block {
  using T = typename S::T;
  using TileX = Tile<T, S::kM, kBlockK>;
  using TileW = std::conditional_t<kColumns, Tile<T, kBlockK, S::kN>, Tile<T, S::kN, kBlockK>>;
  using Sums = float[S::kWarpM / 16][S::kWarpN / 8][4];
  static constexpr int kUnroll = M::K == 16 ? 2 : 1;  // steps along K; floats need too many registers for two steps
  static constexpr Fill kFill = kAsync ? Fill::async : Fill::any;

  // Adds the part of this warp of a stage's X W^T to sums.
  PYPEFT_DEVICE static void multiply(Sums& sums, char* stage, int warp_m, int warp_n) {
    char* tile_W = stage + TileX::kBytes;
#pragma unroll(kUnroll)
    for (int k = 0; k < kBlockK; k += M::K) {
      typename M::A a[S::kWarpM / 16];
#pragma unroll
      for (int m = 0; m < S::kWarpM; m += 16) M::template load_a_rows<TileX>(a[m / 16], stage, warp_m + m, k);
#pragma unroll
      for (int n = 0; n < S::kWarpN; n += 16) {
        typename M::B b[2];
        if constexpr (kColumns) M::template load_b_columns<TileW>(b, tile_W, warp_n + n, k);
        if constexpr (!kColumns) M::template load_b_rows<TileW>(b, tile_W, warp_n + n, k);
#pragma unroll
        for (int m = 0; m < S::kWarpM / 16; ++m) {
          M::mma(sums[m][n / 8], a[m], b[0]);
          M::mma(sums[m][n / 8 + 1], a[m], b[1]);
        }
      }
    }
  }

  // The matrix from which TileW is filled: W, or W^T if kColumns.
  PYPEFT_DEVICE static Matrix as_tiled(Matrix w) {
    if constexpr (kColumns) {
      const int64_t row = w.row;
      const int rows = w.rows;
      w.row = w.col, w.col = row, w.rows = w.cols, w.cols = rows;
    }
    return w;
  }

  // Sets sums to the part of this warp of factor * keep o (S L^T). `spare` is the memory of a stage. `tile_mask` is
  // S::kMaskBytes of shared memory, and is used only if there is a mask.
  PYPEFT_DEVICE static void low_rank(Sums& sums, const LowRank& p, const uint8_t* mask, char* spare, char* tile_mask,
                                     int m0, int n0, int N, int warp_m, int warp_n) {
    constexpr int kThreads = S::kThreads;
    const Matrix L = as_tiled(p.L);
    if (mask) {
      for (int i = threadIdx.x; i < S::kMaskBytes; i += kThreads) {
        const int row = m0 + i / (S::kN / 8), byte = n0 / 8 + i % (S::kN / 8);
        const bool exists = row < p.S.rows && byte * 8 < N;
        store_shared(tile_mask + i, exists ? load_global<uint8_t>(mask + row * p.mask_row + byte) : uint8_t(0));
      }
    }
#pragma unroll 1
    for (int r = 0; r < p.S.cols; r += kBlockK) {
      const Ahead<TileX, kThreads> of_S(p.S, m0, r);
      const Ahead<TileW, kThreads> of_L(L, kColumns ? r : n0, kColumns ? n0 : r);
      if (r > 0) __syncthreads();
      of_S.store(spare);
      of_L.store(spare + TileX::kBytes);
      __syncthreads();
      multiply(sums, spare, warp_m, warp_n);
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < S::kWarpM / 16; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        static_assert(S::kWarpN == 32, "a row's bits are one word");
        const int row = warp_m + m * 16 + lane / 4 + h * 8;
        const uint32_t keep = mask ? load_shared<uint32_t>(tile_mask + row * (S::kN / 8) + warp_n / 8) : ~0u;
#pragma unroll
        for (int n = 0; n < S::kWarpN / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& sum = sums[m][n][2 * h + i];
            sum = keep >> (8 * n + lane % 4 * 2 + i) & 1 ? sum * p.factor : 0.0f;
          }
        }
      }
    }
  }
};

}  // namespace pypeft::gemm
