"""A training run: settings, output folder, training, checkpoints and metrics."""
