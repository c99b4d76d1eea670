// The kernels of gemm.cuh with factors on the columns of z, for IA3 and DoRA.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::outputs>(const ProductArgs&, bool, bool);
