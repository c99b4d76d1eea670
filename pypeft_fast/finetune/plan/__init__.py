"""What a run costs, before it loads weights: parameters, bytes of the adapter, peak memory, seconds of a step."""
