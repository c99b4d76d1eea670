"""Behind `python -m bench.gpu_static`: kernels compiled for GPUs that need not be here, and what is wrong with them."""
