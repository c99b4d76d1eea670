"""Fine-tuning as a library: data, tokens, base models, adapters, training and what tells of a run.

The command `pypeft-fast` and the programs in examples/ are made of these functions. They take values and return values;
what a user can mend is a UserError, whose message names the command's option.
"""
