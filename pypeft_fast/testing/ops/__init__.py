"""One file per op, with the same stem as in pypeft_fast/ops: sample arguments, eager PyTorch's result, mutants."""
