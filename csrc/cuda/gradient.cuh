// The gradients of the adapter's two matrices: both are X^T S with a tall X, and one pass over X makes X B besides.
//
//   lora_ds_db  X = dY [M, N], S = s, B = lora_B:  dB = X^T S [N, r],  dS = X B [M, r]
//   lora_da     X = x [M, K], S = dS, a mask on X: dA = (X^T S)^T [r, K]
//
// Plan. Bound by the read of X. A block takes kCols columns of X (8 warps, kWarpCols each) and a range of rows, 16 at a
// step, through 3 stages of cp.async. A warp keeps its columns' part of X^T S in 32 registers a thread until the end;
// its part of X B, 16 rows by kRank, is added to the other warps' in shared memory at every step. 16-bit and kRank 16:
// 512 columns, 3 x 16 KiB of X, 16 KiB of B, 12 KiB of sums: 80 KiB, two blocks a multiprocessor on sm_80 and sm_90.
// Traffic: X once for every kRank columns of S. Partial sums: 4 r M bytes a block of columns (2 r / kCols of X's bytes
// in 16 bits) and 4 r kCols a block, written once and read once, small enough to stay in L2.
#pragma once
#include "cuda/dispatch.h"
#include "cuda/dropout.cuh"
#include "cuda/fragments.cuh"
#include "cuda/partials.h"

namespace pypeft {

struct GradientArgs {
  Matrix X, S, B;  // S [M, r]; B [cols of X, r], rows 0 if X B is not needed
  int rank;
  int span;             // rows of X that a block takes, a multiple of 16
  const uint8_t* mask;  // [M, mask_row], or null
  int64_t mask_row;
  float* outer;  // parts of X^T S [splits, cols, r] with these strides, or null
  int64_t outer_row, outer_col;
  float* inner;  // parts of X B [blocks of columns, M, r], or null
};

namespace gradient {
constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16, kStages = 3;

// Columns of X that a warp takes: 32 registers of sums a thread, and the tiles within 99 KiB.
constexpr int warp_cols(bool wide, int rank) { return (wide ? 512 : 1024) / rank; }
constexpr int tile_rank(bool wide, int64_t rank) { return rank <= 16 ? 16 : wide ? 32 : 64; }

template <class T, int kRank>
struct Shape {
  static constexpr int kWarpCols = warp_cols(sizeof(T) == 4, kRank), kCols = kWarps * kWarpCols;
  static constexpr int kSumsRow = kRank + 8;  // floats: 8 more than needed, against bank conflicts
  using TileX = Tile<T, kRows, kCols>;
  using TileS = Tile<T, kRows, kRank>;
  using TileB = Tile<T, kCols, kRank>;
  static constexpr int kStageBytes = TileX::kBytes + TileS::kBytes;
  static constexpr int kSumsBytes = kWarps * kRows * kSumsRow * 4;
  static constexpr int bytes(bool inner) { return kStages * kStageBytes + (inner ? TileB::kBytes + kSumsBytes : 0); }
};

template <class T, Fill kFill, bool kTf32, int kRank>
__global__ void __launch_bounds__(kThreads, 1) kernel(GradientArgs p) {
  using M = Math<T, kTf32>;
  using S = Shape<T, kRank>;
  using TileX = typename S::TileX;
  constexpr int kGroups = S::kCols / 8;
  char* shared = shared_memory();
  char* tile_B = shared + kStages * S::kStageBytes;
  float* sums = reinterpret_cast<float*>(tile_B + S::TileB::kBytes);
  const int n0 = blockIdx.x * S::kCols, r0 = blockIdx.z * kRank;
  const int begin = blockIdx.y * p.span, end = min(p.X.rows, begin + p.span), steps = (end - begin + kRows - 1) / kRows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = warp * S::kWarpCols;

  auto copy = [&](int step) {
    if (step < steps) {
      char* stage = shared + step % kStages * S::kStageBytes;
      fill<kFill, TileX, kThreads>(stage, p.X, begin + step * kRows, n0);
      if (p.outer) fill_small<typename S::TileS, kThreads>(stage + TileX::kBytes, p.S, begin + step * kRows, r0);
    }
    cp_async_commit();
  };
  auto drop = [&](char* tile, int m0) {
    for (int i = threadIdx.x; i < kRows * kGroups; i += kThreads) {
      const int row = i / kGroups, group = i % kGroups;
      if (m0 + row >= p.X.rows || n0 + group * 8 >= p.X.cols) continue;
      keep_group<TileX>(tile, row, group, load_global<uint8_t>(p.mask + (m0 + row) * p.mask_row + n0 / 8 + group));
    }
  };

  if (p.inner) fill_small<typename S::TileB, kThreads>(tile_B, p.B, n0, r0);  // lands with the first stage
  float outer[S::kWarpCols / 16][kRank / 8][4] = {};
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    char* stage = shared + step % kStages * S::kStageBytes;
    const int m0 = begin + step * kRows;
    cp_async_wait<kStages - 2>();
    if (p.mask) {
      if constexpr (!kMasksItsOwn<kFill, TileX>) __syncthreads();
      drop(stage, m0);
    }
    __syncthreads();
    copy(step + kStages - 1);  // into the stage that all threads left before this barrier
    if (p.outer) {
#pragma unroll
      for (int k = 0; k < kRows; k += M::K) {
        typename M::B b[kRank / 16][2];
#pragma unroll
        for (int n = 0; n < kRank; n += 16) {
          M::template load_b_columns<typename S::TileS>(b[n / 16], stage + TileX::kBytes, n, k);
        }
#pragma unroll
        for (int m = 0; m < S::kWarpCols; m += 16) {
          typename M::A a;
          M::template load_a_columns<TileX>(a, stage, column + m, k);
#pragma unroll
          for (int n = 0; n < kRank; n += 8) M::mma(outer[m / 16][n / 8], a, b[n / 16][n / 8 % 2]);
        }
      }
    }
    if (p.inner) {
      float inner[kRank / 8][4] = {};
#pragma unroll
      for (int k = 0; k < S::kWarpCols; k += M::K) {
        typename M::A a;
        M::template load_a_rows<TileX>(a, stage, 0, column + k);
#pragma unroll
        for (int n = 0; n < kRank; n += 16) {
          typename M::B b[2];
          M::template load_b_columns<typename S::TileB>(b, tile_B, n, column + k);
          M::mma(inner[n / 8], a, b[0]);
          M::mma(inner[n / 8 + 1], a, b[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kRank; n += 8) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float* to = sums + (warp * kRows + lane / 4 + h * 8) * S::kSumsRow + n + lane % 4 * 2;
          store_shared(to, make_float2(inner[n / 8][2 * h], inner[n / 8][2 * h + 1]));
        }
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kRows * kRank; i += kThreads) {
        const int row = i / kRank, r = i % kRank;
        float total = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += load_shared<float>(sums + (w * kRows + row) * S::kSumsRow + r);
        if (m0 + row < p.X.rows && r0 + r < p.rank) {
          store_global(p.inner + (int64_t(blockIdx.x) * p.X.rows + m0 + row) * p.rank + r0 + r, total);
        }
      }
    }
  }
  if (!p.outer) return;
  float* out = p.outer + int64_t(blockIdx.y) * p.X.cols * p.rank;
#pragma unroll
  for (int m = 0; m < S::kWarpCols; m += 16) {
#pragma unroll
    for (int n = 0; n < kRank; n += 8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int col = n0 + column + m + lane / 4 + i / 2 * 8, r = r0 + n + lane % 4 * 2 + i % 2;
        if (col < p.X.cols && r < p.rank) {
          store_global(out + col * p.outer_row + r * p.outer_col, outer[m / 16][n / 8][i]);
        }
      }
    }
  }
}

// How the work is cut; the same numbers serve the allocation of the partial sums and the launch.
struct Cut {
  int rank, columns, blocks, splits, span;  // rank: of a tile
};

inline Cut cut(const OnDevice& on, const Matrix& X, int rank, bool wide) {
  wide = wide || X.dtype == Dtype::f32;
  Cut c{};
  c.rank = tile_rank(wide, rank);
  c.columns = kWarps * warp_cols(wide, c.rank);
  c.blocks = size_of(ceil_div(X.cols, c.columns));
  const int splits = splits_for(on, int64_t(c.blocks) * ceil_div(rank, c.rank), std::max<int64_t>(1, X.rows / 128));
  c.span = size_of(ceil_div(ceil_div(X.rows, splits), kRows) * kRows);
  c.splits = c.span > 0 ? size_of(ceil_div(X.rows, c.span)) : 0;
  return c;
}

void run(const OnDevice& on, const Cut& c, const GradientArgs& p, bool wide, bool tf32);
}  // namespace gradient
}  // namespace pypeft
