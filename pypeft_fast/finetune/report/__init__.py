"""What tells of a run: sentences of advice, the loss plot, the adapter's README.md."""
