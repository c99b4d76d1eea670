"""A run: its settings, its folder, training, checkpoints, and the numbers that it leaves."""
