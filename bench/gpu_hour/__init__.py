"""python -m bench.gpu_hour: measures and tests a machine with a GPU in nine minutes, without a network."""
