"""The command `pypeft-fast`: info, finetune, evaluate, chat, serve, inspect and merge."""
