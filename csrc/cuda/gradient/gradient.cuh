// The kernel of gradient.h.
//
// Plan. The kernel is bound by the read of X. A block reads kCols columns and `span` rows of X, in steps of kRows rows,
// through 3 stages of cp.async. Each of its eight warps takes 16 rows and kWarpCols columns of a stage, and keeps its
// part of X^T S in 32 accumulator registers of each thread until the end. There are two shapes, here for kRank 16 and
// 16-bit X:
//   wide   A stage is 16 x 512, with the warps side by side. After each step the warps add their parts of X B, 16 x
//          kRank, in shared memory. A block uses 3 x 16 KiB for X, 16 KiB for B and 8 KiB for sums: a multiprocessor
//          with 164 KiB runs two blocks.
//   tall   A stage is 64 x 128, with two warps side by side and four below each other. The four add their parts of
//          X^T S in shared memory at the end. Without X B a narrow block is better, because its part of X^T S is small.
//          A block uses 3 x 18 KiB.
// If S and B are float and X is bfloat16, S and B are split in three parts: S once a block, before the step in which it
// is multiplied. The warps of a wide block keep the parts of their rows of B in registers.
// Traffic: X once for every kRank columns of S. The parts of X B are 4 r bytes for each row and block of columns, which
// is 2 r / kCols of the bytes of a 16-bit X. The parts of X^T S are 2 r / span of the bytes of X. Each part is stored
// once, and the last block reads it back from L2.
#pragma once
#include "cuda/device/adapter_tiles.cuh"
#include "cuda/device/dropout.cuh"
#include "cuda/gradient/gradient_sums.cuh"

namespace pypeft::gradient {
constexpr int kWarps = 8, kThreads = 32 * kWarps, kStages = 3;

template <class M>
inline constexpr bool kInParts = std::is_same_v<M, Parts>;

// The most ranks of a block. The parts take registers for two more sums.
template <class M>
inline constexpr int kMostRanks = sizeof(typename M::Element) == 4 || kInParts<M> ? 32 : 64;

// Columns of X of a warp, chosen for 32 sums in each thread, and for tiles within 99 KiB.
constexpr int warp_cols(bool floats, int rank) { return (floats ? 512 : 1024) / rank; }

template <class M, int kRank, bool kTall>
struct Shape {
  using T = typename M::Element;
  static constexpr int kWarpCols = warp_cols(sizeof(T) == 4, kRank);
  static constexpr int kAcross = kTall ? std::min(kWarps, 128 / kWarpCols) : kWarps, kDown = kWarps / kAcross;
  static constexpr int kRows = 16 * kDown, kCols = kAcross * kWarpCols, kParts = kWarpCols * kRank / 128;
  using TileX = Tile<T, kRows, kCols>;
  using TilesS = AdapterTiles<M, kRows, kRank, kThreads, kStages>;
  using TileB = Tile<T, kCols, kRank>;
  static constexpr int kBytesX = kStages * TileX::kBytes, kBytesB = kInParts<M> ? 0 : TileB::kBytes;
  static constexpr int kSumsBytes = kWarps * 16 * kRank * 4;
  static constexpr int bytes(bool inner) { return kBytesX + TilesS::kBytes + (inner ? kBytesB + kSumsBytes : 0); }
  static_assert(kDown == 1 || kWarps / 2 * kParts * 512 <= kBytesX + TilesS::kBytes, "sums meet in the tiles' memory");
};

template <class M, Fill kFill, int kRank, bool kTall>
__global__ void __launch_bounds__(kThreads, 1) kernel(GradientArgs p) {
  using S = Shape<M, kRank, kTall>;
  using TileX = typename S::TileX;
  constexpr int kRows = S::kRows, kGroups = S::kCols / 8;
  char* shared = shared_memory();
  typename S::TilesS tiles_S(p.S, shared + S::kBytesX);
  [[maybe_unused]] char* tile_B = shared + S::kBytesX + S::TilesS::kBytes;
  [[maybe_unused]] float* sums = reinterpret_cast<float*>(tile_B + S::kBytesB);
  const int n0 = blockIdx.x * S::kCols, r0 = blockIdx.z * kRank;
  const int begin = blockIdx.y * p.span, end = min(p.X.rows, begin + p.span), steps = (end - begin + kRows - 1) / kRows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, across = warp % S::kAcross, down = warp / S::kAcross;
  const int column = across * S::kWarpCols, line = 16 * down;  // the first column and row of the warp in a stage

  auto copy = [&](int step) {
    if (step < steps) {
      fill<kFill, TileX, kThreads>(shared + step % kStages * TileX::kBytes, p.X, begin + step * kRows, n0);
      if (p.outer.out) tiles_S.copy(step, begin + step * kRows, r0);
    }
    cp_async_commit();
  };
  // The mask's bytes of a stage, requested before the wait for its X; outside of X there are none.
  uint8_t kept[kRows * kGroups / kThreads] = {};
  auto load_mask = [&](int m0) {
    int turn = 0;
    each_group<TileX, kThreads>([&](int row, int group) {
      const bool inside = m0 + row < p.X.rows && n0 + group * 8 < p.X.cols;
      const uint8_t* from = p.mask + (m0 + row) * p.mask_row + n0 / 8 + group;
      kept[turn++] = inside ? load_global<uint8_t>(from) : uint8_t(0);
    });
  };
  auto drop = [&](char* tile) {
    int turn = 0;
    each_group<TileX, kThreads>([&](int row, int group) {
      Keep keep;
      unpack(keep, kept[turn++]);
      keep_group<TileX>(tile, row, group, keep);
    });
  };

  if constexpr (!kTall && !kInParts<M>) {
    if (p.inner.out) fill_small<typename S::TileB, kThreads>(tile_B, p.B, n0, r0);  // is complete with the first stage
  }
  typename M::Sum outer[S::kWarpCols / 16][kRank / 8] = {};
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  [[maybe_unused]] typename M::B parts_B[S::kWarpCols / 16][kRank / 8];
  if constexpr (!kTall && kInParts<M>) {
    if (p.inner.out) {
#pragma unroll
      for (int k = 0; k < S::kWarpCols; k += 16) {
#pragma unroll
        for (int n = 0; n < kRank; n += 8) M::load_b_global(parts_B[k / 16][n / 8], p.B, r0 + n, n0 + column + k);
      }
    }
  }
  if (p.outer.out) {
    tiles_S.load(begin, r0);
    tiles_S.store(0, begin, r0);
  }
  for (int step = 0; step < steps; ++step) {
    char* stage = shared + step % kStages * TileX::kBytes;
    [[maybe_unused]] const int m0 = begin + step * kRows;
    if (p.outer.out) tiles_S.load(m0 + kRows, r0);
    if (p.mask) load_mask(m0);
    cp_async_wait<kStages - 2>();
    if (p.mask) {
      if constexpr (!kMasksItsOwn<kFill, TileX>) __syncthreads();
      drop(stage);
    }
    __syncthreads();
    copy(step + kStages - 1);  // into the stage that all threads left before this barrier
    if (p.outer.out) {
#pragma unroll
      for (int k = 0; k < 16; k += M::K) {
        typename M::B b[kRank / 16][2];
#pragma unroll
        for (int n = 0; n < kRank; n += 16) {
          M::template load_b_columns<typename S::TilesS::Tile>(b[n / 16], tiles_S.tile(step), n, line + k);
        }
#pragma unroll
        for (int m = 0; m < S::kWarpCols; m += 16) {
          typename M::A a;
          M::template load_a_columns<TileX>(a, stage, column + m, line + k);
#pragma unroll
          for (int n = 0; n < kRank; n += 8) M::mma(outer[m / 16][n / 8], a, b[n / 16][n / 8 % 2]);
        }
      }
      tiles_S.store(step + 1, m0 + kRows, r0);
    }
    if constexpr (!kTall) {
      if (p.inner.out) {
        typename M::Sum inner[kRank / 8] = {};
#pragma unroll
        for (int k = 0; k < S::kWarpCols; k += M::K) {
          typename M::A a;
          M::template load_a_rows<TileX>(a, stage, 0, column + k);
#pragma unroll
          for (int n = 0; n < kRank; n += 16) {
            if constexpr (kInParts<M>) {
              M::mma(inner[n / 8], a, parts_B[k / 16][n / 8]);
              M::mma(inner[n / 8 + 1], a, parts_B[k / 16][n / 8 + 1]);
            } else {
              typename M::B b[2];
              M::template load_b_columns<typename S::TileB>(b, tile_B, n, column + k);
              M::mma(inner[n / 8], a, b[0]);
              M::mma(inner[n / 8 + 1], a, b[1]);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < kRank; n += 8) {
          const float (&total)[4] = M::total(inner[n / 8]);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            store_shared(inner_at<kRank>(sums, warp, lane / 4 + h * 8, n + lane % 4 * 2),
                         make_float2(total[2 * h], total[2 * h + 1]));
          }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * kRank; i += kThreads) {
          const int row = i / kRank, r = i % kRank;
          float total = 0;
#pragma unroll
          for (int w = 0; w < kWarps; ++w) total += load_shared<float>(inner_at<kRank>(sums, w, row, r));
          store_inner<kRank>(p, m0 - begin + row, r, total);
        }
      }
    }
  }
  if constexpr (!kTall) {
    if (p.inner.out && gridDim.x > 1 && last_of(p.inner.split, inner_number(), gridDim.x)) {
      add_inner<kRank>(p);
    }
  }
  if (p.outer.out) finish_outer<S, M, kRank>(p, shared, outer, n0 + column, r0, across, down);
}

}  // namespace pypeft::gradient
