// gemm.cuh's kernels without factors on columns: LoRA's.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::none>(const ProductArgs&, bool, bool);
