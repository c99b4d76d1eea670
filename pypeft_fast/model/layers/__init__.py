"""PEFT's LoRA, DoRA and IA3 layers on this package's ops: the fast path, the reasons for PEFT's path, exact unmerge."""
