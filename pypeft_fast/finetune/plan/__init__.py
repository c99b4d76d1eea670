"""What a run will cost, before its weights are loaded: parameters, bytes of the adapter, peak memory, time of a step."""
