"""Which adapters can share a model with others: those that leave the base model's own weights as they are."""

from pathlib import Path

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig

from ..finetune.adapters.files import CONFIG, object_in
from ..finetune.errors import UserError
from ..finetune.text import quoted
from ..model.files.lora_fields import keeps_base


def check_servable(folder: Path) -> None:
    """UserError for an adapter whose loading would change the answers of the base model or of other adapters, or whose
    rows cannot be in a batch with rows of others."""
    config = object_in(folder / CONFIG)[0]
    named = config.get("peft_type")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(named) if isinstance(named, str) else None
    start = config.get("init_lora_weights")
    if kind is not None and issubclass(kind, PromptLearningConfig):
        why = f"peft_type {config['peft_type']}: virtual tokens cannot differ among the rows of a batch"
    elif config.get("use_dora"):
        why = "use_dora: DoRA cannot differ among the rows of a batch"
    elif config.get("bias", "none") != "none":
        why = f"bias {quoted(config['bias'])}: the adapter replaces biases of the base model"
    elif config.get("layer_replication"):
        why = "layer_replication: the adapter changes the layers of the base model"
    elif not keeps_base(start):
        why = f"init_lora_weights {quoted(start)}: the adapter changes the base model's weights"
    else:
        return
    raise UserError(f"`adapter` {folder.name} cannot be served beside others: {why}")
