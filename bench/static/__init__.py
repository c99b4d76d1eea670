"""The code of `python -m bench.gpu_static`: compiles kernels for several GPUs, and finds faults in the result."""
