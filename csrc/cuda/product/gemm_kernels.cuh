// Chooses the template arguments of the kernel from the arguments of a product.
#pragma once
#include "cuda/product/gemm.cuh"

namespace pypeft::gemm {

// Whether tiles are copied by 16 bytes. X, its factors and W, by rows or by columns, must allow it.
template <Scale kScale>
bool takes_vectors(const ProductArgs& p) {
  const bool of_X = p.X.vectors && (kScale != Scale::inputs || p.inputs.factors.vectors);
  return of_X && (p.W.vectors || transposed(p.W).vectors);
}

template <class S>
Kernel of_shape(void (*kernel)(ProductArgs)) {
  return {kernel, S::kM, S::kN, S::kThreads, S::kBytes, S::kMaskBytes, kStages * S::kFactorsBytes};
}

// The kernel that copies tiles by 16 bytes, from W by rows if W allows it.
template <Scale kScale, class S, class M>
Kernel kernel_of_vectors(const ProductArgs& p) {
  return of_shape<S>(p.W.vectors ? gemm_kernel<S, M, false, true, kScale> : gemm_kernel<S, M, true, true, kScale>);
}

// The kernel that copies tiles by 16 bytes where it can, otherwise element by element.
template <Scale kScale, class S, class M>
Kernel kernel_of(const ProductArgs& p) {
  return takes_vectors<kScale>(p) ? kernel_of_vectors<kScale, S, M>(p)
                                  : of_shape<S>(gemm_kernel<S, M, false, false, kScale>);
}

// Only copies by 16 bytes have large tiles: with large tiles, copies element by element spill registers.
template <Scale kScale, class T>
Kernel kernel_of_16_bits(const ProductArgs& p, bool large) {
  return large && takes_vectors<kScale>(p) ? kernel_of_vectors<kScale, Shape<T, 128, 128, 64, 32>, Math<T>>(p)
                                           : kernel_of<kScale, Shape<T, 64, 64, 32, 32>, Math<T>>(p);
}

template <Scale kScale>
Kernel kernel_for(const ProductArgs& p, bool large, bool allow_tf32) {
  using Float = Shape<float, 64, 64, 32, 32>;
  if (p.X.dtype == Dtype::bf16) return kernel_of_16_bits<kScale, __nv_bfloat16>(p, large);
  if (p.X.dtype == Dtype::f16) return kernel_of_16_bits<kScale, __half>(p, large);
  return allow_tf32 ? kernel_of<kScale, Float, Math<float, true>>(p) : kernel_of<kScale, Float, Math<float, false>>(p);
}

}  // namespace pypeft::gemm
