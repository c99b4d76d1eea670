"""What joins layers: the gated feedforward block, and batches whose rows belong to several adapters."""
