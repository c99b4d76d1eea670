// gemm.cuh's kernels with IA3's factors on the columns of the inputs.
#include "cuda/gemm_run.cuh"

template void pypeft::gemm_detail::run<pypeft::Scale::inputs>(const OnDevice&, const GemmArgs&, bool);
