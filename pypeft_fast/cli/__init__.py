"""The command `pypeft-fast`: info, finetune, evaluate, chat, inspect and merge."""
