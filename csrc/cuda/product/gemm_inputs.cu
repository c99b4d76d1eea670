// gemm.cuh's kernels with factors on the columns of X: IA3's.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::inputs>(const ProductArgs&, bool, bool);
