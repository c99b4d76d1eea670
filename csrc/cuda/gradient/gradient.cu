// Chooses a kernel of gradient.cuh, and the number of blocks.
#include "cuda/gradient/gradient.cuh"

#include "cuda/device/dispatch.h"

namespace pypeft::gradient {
namespace {
template <class M, Fill kFill, int kRank, bool kTall>
void run_shape(const OnDevice& on, GradientArgs p, const Tensor& like) {
  using S = Shape<M, kRank, kTall>;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(p.X.cols, S::kCols)), tiles = ceil_div(p.rank, kRank);
  // A wide block has large parts and keeps 32 KiB of X in flight: one block for each multiprocessor is enough.
  const int64_t wanted = splits_for(on, kTall ? 2 : 1, blocks * tiles, p.X.rows, std::min(p.rank, kRank));
  p.span = std::max(1, size_of(ceil_div(ceil_div(p.X.rows, wanted), S::kRows))) * S::kRows;
  const int64_t splits = std::max<int64_t>(1, ceil_div(p.X.rows, p.span));
  const int64_t inner_part = int64_t(p.span) * inner_width(p.rank, kRank);
  const Workspace workspace(on, like,
                            {{&p.outer.split, blocks * tiles, p.outer.out ? splits : 1, S::kCols * kRank},
                             {&p.inner.split, splits * tiles, p.inner.out ? blocks : 1, inner_part}});
  const dim3 grid(size_of(blocks), size_of(splits), size_of(tiles));
  launch(on, kernel<M, kFill, kRank, kTall>, grid, dim3(kThreads), S::bytes(p.inner.out != nullptr), p);
}
}  // namespace

void run(const OnDevice& on, GradientArgs p, const Tensor& like, bool wide, bool tf32) {
  dispatch(p.X, wide, tf32, [&]<class M, Fill kFill>() {
    if (p.rank > 16) {
      run_shape<M, kFill, kMostRanks<M>, false>(on, p, like);
    } else if (p.inner.out) {
      run_shape<M, kFill, 16, false>(on, p, like);
    } else {
      run_shape<M, kFill, 16, true>(on, p, like);
    }
  });
}

}  // namespace pypeft::gradient
