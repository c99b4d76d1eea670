"""Reports of a run: advice, the loss plot, the adapter's README.md."""
