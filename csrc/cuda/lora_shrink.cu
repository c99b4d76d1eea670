// s = drop(x) A^T and the packed mask.
//
//   x [M, K], lora_A [r, K], seed int64 [1] -> s [M, r], mask uint8 [M, ceil(K/8)]
//
// Several projections of one x may be stacked as G groups: lora_A [R, K] with G seeds and R = G r. Rows [g r, (g + 1)
// r) of lora_A are multiplied with x under mask g, which is rows [g M, (g + 1) M) of mask [G M, ceil(K/8)].
//
// Plan. The kernel is bound by the read of x. A block multiplies 64 rows of x with kRank rows of A of one group, over a
// range of K, in steps of 64 columns through 3 stages of cp.async. Each of its four warps takes 16 rows of x. If x and
// A have 16 bits, a stage is 8 KiB of x and 2 KiB (kRank 16) or 8 KiB (kRank 64) of A, and a block uses 30 or 48 KiB;
// floats use twice as much. If A is float and x is bfloat16, the block splits A in three parts, and uses 36 or 72 KiB.
// If x is float16, the products are computed in float. The thread that copied 8 elements of x computes and stores their
// byte of the mask, and sets the dropped elements to 0 in shared memory. If there are few rows, K is split over several
// blocks (split-K), and the last block adds the partial sums. Traffic: x is read once for every kRank rows of A, and
// for every group with dropout; A is read from L2; s and one bit for each element of the mask are written.
#include "cuda/device/adapter_tiles.cuh"
#include "cuda/device/dispatch.h"
#include "cuda/device/dropout.cuh"
#include "cuda/lora.h"
#include "cuda/sums/split_sum.cuh"

namespace pypeft {
namespace {
constexpr int kThreads = 128, kBlockM = 64, kBlockK = 64, kStages = 3;

struct ShrinkArgs {
  Matrix x, A;
  int rank;             // rows of A of one group
  int span;             // columns of x of one block, a multiple of kBlockK
  const int64_t* seed;  // [G], or null
  uint8_t* mask;
  uint32_t threshold;
  SplitSum split;  // a sum for each block of rows and ranks, over the blocks of K; a part: [kRank / 8][kThreads] float4
  float factor;    // multiplies s
  void* s;         // [M, G * rank]
  Dtype s_dtype;
};

template <class M, int kRank>
struct Shape {
  using TileX = Tile<typename M::Element, kBlockM, kBlockK>;
  using TilesA = AdapterTiles<M, kRank, kBlockK, kThreads, kStages>;
  static constexpr int kBytes = kStages * TileX::kBytes + TilesA::kBytes;
};

template <class M, Fill kFill, int kRank>
__global__ void __launch_bounds__(kThreads, 2) shrink_kernel(ShrinkArgs p) {
  using S = Shape<M, kRank>;
  using TileX = typename S::TileX;
  using TileA = typename S::TilesA::Tile;
  // Steps along K at once, as many as there are registers for.
  [[maybe_unused]] constexpr int kUnroll = M::K == 8 || (std::is_same_v<M, Parts> && kRank > 16) ? 1 : 4;
  allow_next_launch();
  char* shared = shared_memory();
  const int tiles = (p.rank + kRank - 1) / kRank, group = blockIdx.y / tiles, r0 = blockIdx.y % tiles * kRank;
  const int m0 = blockIdx.x * kBlockM, begin = blockIdx.z * p.span, end = min(p.x.cols, begin + p.span);
  const int steps = (end - begin + kBlockK - 1) / kBlockK, bytes = (p.x.cols + 7) / 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint64_t seed = p.seed ? load_global<uint64_t>(p.seed + group) : 0;
  Matrix A = p.A;
  A.data = static_cast<const char*>(A.data) + group * p.rank * A.row * (A.dtype == Dtype::f32 ? 4 : 2);
  A.rows = p.rank;
  typename S::TilesA tiles_A(A, shared + kStages * TileX::kBytes);

  auto copy = [&](int step) {
    if (step < steps) {
      fill<kFill, TileX, kThreads>(shared + step % kStages * TileX::kBytes, p.x, m0, begin + step * kBlockK);
      tiles_A.copy(step, r0, begin + step * kBlockK);
    }
    cp_async_commit();
  };
  auto drop = [&](char* tile, int k0) {
    each_group<TileX, kThreads>([&](int row, int eight) {
      const int byte = k0 / 8 + eight;
      const uint64_t index = uint64_t(m0 + row) * bytes + byte;
      Keep keep;
      philox_keep(keep, index, seed, p.threshold);
      keep_group<TileX>(tile, row, eight, keep);
      if (r0 > 0 || m0 + row >= p.x.rows || byte >= bytes) return;
      const uint32_t last = (1u << min(p.x.cols - byte * 8, 8)) - 1;  // bits past the last column are 0
      store_global(p.mask + uint64_t(group) * p.x.rows * bytes + index, uint8_t(packed(keep) & last));
    });
  };

  typename M::Sum products[kRank / 8] = {};
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  tiles_A.load(r0, begin);
  tiles_A.store(0, r0, begin);
  for (int step = 0; step < steps; ++step) {
    char* stage = shared + step % kStages * TileX::kBytes;
    tiles_A.load(r0, begin + (step + 1) * kBlockK);
    cp_async_wait<kStages - 2>();
    if (p.seed) {
      if constexpr (!kMasksItsOwn<kFill, TileX>) __syncthreads();
      drop(stage, begin + step * kBlockK);
    }
    __syncthreads();
    copy(step + kStages - 1);  // into the stage that all threads left before this barrier
#pragma unroll(kUnroll)
    for (int k = 0; k < kBlockK; k += M::K) {
      typename M::A a;
      M::template load_a_rows<TileX>(a, stage, warp * 16, k);
#pragma unroll
      for (int n = 0; n < kRank; n += 16) {
        typename M::B b[2];
        M::template load_b_rows<TileA>(b, tiles_A.tile(step), n, k);
        M::mma(products[n / 8], a, b[0]);
        M::mma(products[n / 8 + 1], a, b[1]);
      }
    }
    tiles_A.store(step + 1, r0, begin + (step + 1) * kBlockK);
  }

  float sums[kRank / 8][4];
#pragma unroll
  for (int n = 0; n < kRank / 8; ++n) {
    const float (&total)[4] = M::total(products[n]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = total[i];
  }
  const bool rows = m0 + warp * 16 < p.x.rows;
  if (gridDim.z > 1) {
    constexpr int kPart = kRank / 8 * kThreads * 4;
    const unsigned number = blockIdx.x * gridDim.y + blockIdx.y;
    float* parts = part_of(p.split, number, gridDim.z, 0, kPart) + threadIdx.x * 4;
#pragma unroll
    for (int n = 0; n < kRank; n += 8) {
      float* to = parts + int64_t(blockIdx.z) * kPart + n / 8 * kThreads * 4;
      if (rows && r0 + n < p.rank) store_part(to, sums[n / 8]);
    }
    if (!last_of(p.split, number, gridDim.z)) return;
#pragma unroll
    for (int n = 0; n < kRank; n += 8) {
      sums[n / 8][0] = sums[n / 8][1] = sums[n / 8][2] = sums[n / 8][3] = 0;
      if (rows && r0 + n < p.rank) add_parts(sums[n / 8], parts + n / 8 * kThreads * 4, kPart, gridDim.z);
    }
  }
#pragma unroll
  for (int n = 0; n < kRank; n += 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n / 8][i] *= p.factor;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int m = m0 + warp * 16 + lane / 4 + h * 8, r = r0 + n + lane % 4 * 2;
      const int64_t at = int64_t(m) * p.A.rows + group * p.rank + r;
      if (m < p.x.rows) store_run<2>(p.s, p.s_dtype, at, sums[n / 8] + 2 * h, p.rank - r);
    }
  }
}

template <class M, Fill kFill, int kRank>
void run(const OnDevice& on, const ShrinkArgs& p, int groups, int splits) {
  const dim3 grid(ceil_div(p.x.rows, kBlockM), groups * ceil_div(p.rank, kRank), splits);
  launch(on, shrink_kernel<M, kFill, kRank>, grid, dim3(kThreads), Shape<M, kRank>::kBytes, p);
}

}  // namespace

std::tuple<Tensor, Tensor, Workspace> lora_shrink(const OnDevice& on, const Tensor& x, const Tensor& lora_A, double p,
                                                  const std::optional<Tensor>& seed, bool allow_tf32) {
  const int64_t M = x.size(0), K = x.size(1), R = lora_A.size(0), bytes = ceil_div(K, 8);
  const int64_t groups = seed ? seed->numel() : 1;
  const bool wide = lora_A.scalar_type() == ScalarType::Float;
  Tensor s = new_empty(x, {M, R}, wide ? ScalarType::Float : x.scalar_type());
  Tensor mask = new_empty(x, {p > 0 ? groups * M : 0, bytes}, ScalarType::Byte);
  if (M == 0) return {s, mask, Workspace(on, x, {})};
  ShrinkArgs args{};
  args.x = view(x), args.A = view(lora_A), args.rank = size_of(R / groups);
  std::optional<Tensor> seeds;
  if (seed) {
    seeds = as_contiguous(*seed);
    args.seed = read<int64_t>(*seeds), args.mask = write<uint8_t>(mask);
    args.threshold = dropout_threshold(p);
  }
  args.factor = static_cast<float>(dropout_scale(p)), args.s = write(s), args.s_dtype = dtype_of(s);
  const int64_t tile = args.rank > 16 ? 64 : 16;
  const int64_t blocks = ceil_div(M, kBlockM) * groups * ceil_div(args.rank, tile);
  const int64_t wanted = splits_for(on, 2, blocks, K, std::min<int64_t>(args.rank, tile));
  args.span = std::max(1, size_of(ceil_div(ceil_div(K, wanted), kBlockK))) * kBlockK;
  const int splits = std::max(1, size_of(ceil_div(K, args.span)));
  Workspace workspace(on, x, {{&args.split, blocks, splits, kBlockM * tile}});
  dispatch(args.x, wide, allow_tf32, [&]<class M, Fill kFill>() {
    if (args.rank > 16) {
      run<M, kFill, 64>(on, args, static_cast<int>(groups), splits);
    } else {
      run<M, kFill, 16>(on, args, static_cast<int>(groups), splits);
    }
  });
  return {s, mask, std::move(workspace)};
}

namespace {
std::tuple<Tensor, Tensor> lora_shrink_entry(const Tensor& x, const Tensor& lora_A, double p,
                                             const std::optional<Tensor>& seed, bool allow_tf32) {
  check_storages("lora_shrink", "x", x, "lora_A", lora_A, "seed", seed);
  const auto [s, mask, workspace] = lora_shrink(OnDevice(x), x, lora_A, p, seed, allow_tf32);
  return {s, mask};
}
}  // namespace
}  // namespace pypeft

PYPEFT_CUDA_LIBRARY_IMPL(m) { m.impl("lora_shrink_cuda", TORCH_BOX(&pypeft::lora_shrink_entry)); }
