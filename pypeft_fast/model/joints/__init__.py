"""Code that concerns several layers: the gated feedforward block, and batches whose rows have several adapters."""
