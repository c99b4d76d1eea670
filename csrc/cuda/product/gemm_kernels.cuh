// Chooses the template arguments of the kernel from the arguments of a product.
#pragma once
#include "cuda/product/gemm.cuh"

namespace pypeft::gemm {

// Tiles are copied by 16 bytes if X, its factors and W allow it, W by rows or by columns; otherwise element by element.
template <Scale kScale, class S, class M>
Kernel kernel_of(const ProductArgs& p) {
  const bool vectors = p.X.vectors && (kScale != Scale::inputs || p.inputs.factors.vectors);
  const auto by_rows = gemm_kernel<S, M, false, true, kScale>, by_columns = gemm_kernel<S, M, true, true, kScale>,
             by_elements = gemm_kernel<S, M, false, false, kScale>;
  const auto kernel = vectors && p.W.vectors ? by_rows : vectors && transposed(p.W).vectors ? by_columns : by_elements;
  return {kernel, S::kM, S::kN, S::kThreads, S::kBytes, S::kMaskBytes, kStages * S::kFactorsBytes};
}

template <Scale kScale, class T>
Kernel kernel_of_16_bits(const ProductArgs& p, bool large) {
  return large ? kernel_of<kScale, Shape<T, 128, 128, 64, 32>, Math<T>>(p)
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
