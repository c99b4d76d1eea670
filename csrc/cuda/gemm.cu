// The choice among the kernels of gemm.cuh, and those without l; the others are compiled beside them.
#include "cuda/gemm_run.cuh"

namespace pypeft {

void gemm(const OnDevice& on, const GemmArgs& p, bool allow_tf32) {
  using namespace gemm_detail;
  if (p.scale.on == Scale::inputs) return run<Scale::inputs>(on, p, allow_tf32);
  if (p.scale.on == Scale::outputs) return run<Scale::outputs>(on, p, allow_tf32);
  run<Scale::none>(on, p, allow_tf32);
}

int tile_rows(const OnDevice& on, const GemmArgs& p) { return gemm_detail::takes_large_tiles(on, p) ? 128 : 64; }

// Two blocks a multiprocessor, but none with fewer than 64 rows: the parts would weigh more than they save.
int cut_rows(const OnDevice& on, GemmArgs& p) {
  const int64_t across = ceil_div(p.X.cols * bytes_of(p.X.dtype), kSumBytes), M = p.X.rows;
  const int64_t wanted = ceil_div(2 * on.info().multiprocessors, std::max<int64_t>(1, across));
  p.scale.span = size_of(ceil_div(M, std::max<int64_t>(1, std::min(wanted, M / 64))));
  const int64_t parts = M > 0 ? ceil_div(M, p.scale.span) : 0;
  p.scale.blocks = size_of(across * parts);
  return size_of(parts);
}

}  // namespace pypeft
