"""Fine-tuning as a library: data, tokens, base models, adapters, training and reports.

The command `pypeft-fast` and the programs in examples/ use these functions, which take and return values. A mistake
that the user can correct raises UserError, and the message names the option of the command.
"""
