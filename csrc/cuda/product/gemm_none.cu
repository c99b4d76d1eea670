// The kernels of gemm.cuh without factors on columns, for LoRA.
#include "cuda/product/gemm_kernels.cuh"

template pypeft::gemm::Kernel pypeft::gemm::kernel_for<pypeft::gemm::Scale::none>(const ProductArgs&, bool, bool);
