"""The steps of bench.gpu_hour, one program each: python -m bench.gpu_hour.steps.NAME."""
