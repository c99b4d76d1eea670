// gemm.cuh's kernels with factors on the columns of the outputs: IA3's and DoRA's.
#include "cuda/gemm_run.cuh"

template void pypeft::gemm_detail::run<pypeft::Scale::outputs>(const OnDevice&, const GemmArgs&, bool);
