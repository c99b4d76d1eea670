"""What the benchmarks share: cases, checks, timing, targets, reports, and their command lines."""
