// gemm.cuh's kernels with factors on the columns of the sums: IA3's and DoRA's.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::outputs>(const ProductArgs&, bool, bool);
