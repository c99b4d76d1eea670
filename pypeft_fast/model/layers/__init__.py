"""PEFT's LoRA, DoRA and IA3 layers on this package's ops: the fast path, every reason why not, exact unmerging."""
