"""Behind `python -m bench.traffic` and `python -m bench.performance_model`: bytes counted kernel by kernel."""
