// The kernels of gemm.cuh with factors on the columns of X, for IA3.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::inputs>(const ProductArgs&, bool, bool);
