// The kernels of gradient.cuh, compiled once for both ops.
#include "cuda/gradient.cuh"

namespace pypeft::gradient {

void run(const OnDevice& on, const Cut& c, const GradientArgs& p, bool wide, bool tf32) {
  const dim3 grid(c.blocks, c.splits, ceil_div(p.rank, c.rank));
  dispatch(p.X, wide, tf32, [&]<class T, Fill kFill, bool kTf32>() {
    const bool inner = p.inner != nullptr;
    if (c.rank == 16) {
      launch(on, kernel<T, kFill, kTf32, 16>, grid, dim3(kThreads), Shape<T, 16>::bytes(inner), p);
    } else {
      constexpr int kRank = tile_rank(sizeof(T) == 4, 64);
      launch(on, kernel<T, kFill, kTf32, kRank>, grid, dim3(kThreads), Shape<T, kRank>::bytes(inner), p);
    }
  });
}

}  // namespace pypeft::gradient
