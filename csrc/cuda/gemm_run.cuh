// From the arguments of a product to the template arguments of its kernel.
#pragma once
#include "cuda/gemm.cuh"

namespace pypeft::gemm_detail {

template <Scale kScale>
void run(const OnDevice& on, const GemmArgs& p, bool allow_tf32);
extern template void run<Scale::inputs>(const OnDevice&, const GemmArgs&, bool);
extern template void run<Scale::outputs>(const OnDevice&, const GemmArgs&, bool);

// Whether tiles of 128 x 128 are enough for every multiprocessor to have one.
inline bool takes_large_tiles(const OnDevice& on, const GemmArgs& p) {
  const int64_t tiles = ceil_div(p.X.rows, 128) * ceil_div(p.W.rows, 128);
  return p.X.dtype != Dtype::f32 && tiles >= on.info().multiprocessors;
}

template <Scale kScale, class S, class M, bool kColumns, bool kAsync>
void run_kernel(const OnDevice& on, const GemmArgs& p) {
  const int64_t tiles = ceil_div(p.X.rows, S::kM) * ceil_div(p.W.rows, S::kN);
  const int64_t wanted = p.out || p.scale.on == Scale::outputs ? tiles : 0;
  const int more = p.mask ? S::kMaskBytes : kScale == Scale::inputs ? kStages * S::kFactorsBytes : 0;
  launch(on, kernel<S, M, kColumns, kAsync, kScale>, dim3(static_cast<unsigned>(wanted + p.scale.blocks)),
         dim3(S::kThreads), S::kBytes + more, p);
}

// W as it lies, by rows or by columns, if 16-byte copies can read it, X and its factors; else element by element.
template <Scale kScale, class S, class M>
void run_layout(const OnDevice& on, const GemmArgs& p) {
  const bool vectors = p.X.vectors && (kScale != Scale::inputs || p.scale.l.vectors);
  if (vectors && p.W.vectors) {
    run_kernel<kScale, S, M, false, true>(on, p);
  } else if (vectors && transposed(p.W).vectors) {
    run_kernel<kScale, S, M, true, true>(on, p);
  } else {
    run_kernel<kScale, S, M, false, false>(on, p);
  }
}

template <Scale kScale, class T>
void run_16_bit(const OnDevice& on, const GemmArgs& p) {
  if (takes_large_tiles(on, p)) {
    run_layout<kScale, Shape<T, 128, 128, 64, 32>, Math<T>>(on, p);
  } else {
    run_layout<kScale, Shape<T, 64, 64, 32, 32>, Math<T>>(on, p);
  }
}

template <Scale kScale>
void run(const OnDevice& on, const GemmArgs& p, bool allow_tf32) {
  using Float = Shape<float, 64, 64, 32, 32>;
  if (p.X.dtype == Dtype::bf16) return run_16_bit<kScale, __nv_bfloat16>(on, p);
  if (p.X.dtype == Dtype::f16) return run_16_bit<kScale, __half>(on, p);
  allow_tf32 ? run_layout<kScale, Float, Math<float, true>>(on, p)
             : run_layout<kScale, Float, Math<float, false>>(on, p);
}

}  // namespace pypeft::gemm_detail
