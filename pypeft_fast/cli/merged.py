"""A base model with an adapter folded into its weights."""

from pathlib import Path

import pypeft_fast

from .errors import UserError, as_user_error
from .library_errors import LIBRARY_ERRORS


def merged(base, adapter: Path):
    """The base model, its weights with the adapter's update, and no adapter layers any more.

    UserError if the files do not fit the base, the method has nothing to fold in, or a merged weight is not finite.
    """
    with as_user_error(f"--adapter {adapter} cannot be loaded", LIBRARY_ERRORS):
        model = pypeft_fast.PeftModel.from_pretrained(base, adapter)
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning or config.peft_type == "BOTTLENECK":
        raise UserError(
            f"--adapter {adapter} is of the method {config.peft_type}, which has no weights to fold into the base; use "
            "it as an adapter"
        )
    with as_user_error(f"--adapter {adapter} cannot be merged", LIBRARY_ERRORS):
        return model.merge_and_unload(safe_merge=True)
