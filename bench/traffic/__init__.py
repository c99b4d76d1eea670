"""The code of `python -m bench.traffic` and `python -m bench.performance_model`: counts bytes kernel by kernel."""
