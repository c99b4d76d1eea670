"""python -m bench.gpu_hour: what is worth knowing of a machine with a GPU, in nine minutes, without a network."""
