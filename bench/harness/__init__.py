"""Code that the benchmarks share: cases, checks, timing, targets, reports, and command lines."""
