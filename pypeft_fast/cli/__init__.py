"""The command `pypeft-fast`: info, finetune and chat."""
