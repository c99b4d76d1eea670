// The choice among the kernels of gemm.cuh.
#include "cuda/gemm.cuh"

namespace pypeft {
namespace gemm_detail {
namespace {
template <class S, class M, bool kColumns, bool kAsync>
void run(const OnDevice& on, const GemmArgs& p) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.X.rows, S::kM) * ceil_div(p.W.rows, S::kN)));
  launch(on, kernel<S, M, kColumns, kAsync>, grid, dim3(S::kThreads), S::kBytes, p);
}

// W as it lies, by rows or by columns, if 16-byte copies can read it and X; else element by element.
template <class S, class M>
void run(const OnDevice& on, const GemmArgs& p) {
  if (p.X.vectors && p.W.vectors) {
    run<S, M, false, true>(on, p);
  } else if (p.X.vectors && transposed(p.W).vectors) {
    run<S, M, true, true>(on, p);
  } else {
    run<S, M, false, false>(on, p);
  }
}

template <class T>
void run_16_bit(const OnDevice& on, const GemmArgs& p) {
  if (ceil_div(p.X.rows, 128) * ceil_div(p.W.rows, 128) >= on.info().multiprocessors) {
    run<Shape<T, 128, 128, 64, 32>, Math<T>>(on, p);
  } else {
    run<Shape<T, 64, 64, 32, 32>, Math<T>>(on, p);
  }
}
}  // namespace
}  // namespace gemm_detail

void gemm(const OnDevice& on, const GemmArgs& p, bool allow_tf32) {
  using namespace gemm_detail;
  using Float = Shape<float, 64, 64, 32, 32>;
  if (p.X.dtype == Dtype::bf16) return run_16_bit<__nv_bfloat16>(on, p);
  if (p.X.dtype == Dtype::f16) return run_16_bit<__half>(on, p);
  allow_tf32 ? run<Float, Math<float, true>>(on, p) : run<Float, Math<float, false>>(on, p);
}

}  // namespace pypeft
