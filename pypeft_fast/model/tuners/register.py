"""BitFit and bottleneck adapters among PEFT's methods, for peft.get_peft_model and PeftModel.from_pretrained."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .bitfit import BitFitModel
from .bitfit_config import BitFitConfig
from .bottleneck import BottleneckModel
from .bottleneck_config import BottleneckConfig
from .peft_types import BITFIT, BOTTLENECK


def register() -> None:
    """Once a process; KeyError if this PEFT has a method of one of the names."""
    for peft_type, config, model in (
        (BITFIT, BitFitConfig, BitFitModel),
        (BOTTLENECK, BottleneckConfig, BottleneckModel),
    ):
        if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type) is not config:
            options = dict(prefix=model.prefix, is_mixed_compatible=True)
            register_peft_method(name=peft_type.value.lower(), config_cls=config, model_cls=model, **options)


register()
