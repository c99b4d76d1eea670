"""One file for each op, with the stem of pypeft_fast/ops: its sample arguments, eager PyTorch's result, its mutants."""
