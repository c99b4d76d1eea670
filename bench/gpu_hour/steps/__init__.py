"""The steps of bench.gpu_hour that are programs of their own: python -m bench.gpu_hour.steps.NAME."""
