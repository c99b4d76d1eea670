"""What a run trains: the method, the layers, the parameters."""

from peft.tuners.tuners_utils import BaseTunerLayer

from ..text import cut


def scope(model, method: str) -> str:
    """One line about a PeftModel: the method, its rank, the number and the names of the adapted layers."""
    config = next(iter(model.peft_config.values()))
    if config.is_prompt_learning:
        return f"{method} with {config.num_virtual_tokens} virtual tokens"
    layers = [name for name, its in model.named_modules() if isinstance(its, BaseTunerLayer)]
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
    return f"{method}{rank} on {len(layers)} layer{'s' * (len(layers) != 1)}: {cut(', '.join(kinds))}"
