"""LoraConfig: PEFT's fields, names, order and defaults (peft 0.21); what is not supported is an error that names it."""

from dataclasses import dataclass, field

from ..nn.init import check_init
from ..ops import _check
from . import validate
from .config import PeftConfig, PeftType

# Fields that PEFT writes into every adapter_config.json, at the one value that this package gives them.
UNSUPPORTED = {
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "trainable_token_indices": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "velora_config": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "qalora_group_size": 16,
    "monteclora_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "ensure_weight_tying": False,
}
BIAS = ("none", "all", "lora_only")


@dataclass
class LoraConfig(PeftConfig):
    """How to put LoRA (arXiv:2106.09685) on a model; the fields mean what they mean in PEFT.

    Args:
        target_modules: names (a module matches by its whole name or by what follows a dot), a regular expression
            for the whole name, or "all-linear"; None: the usual ones for the model's architecture.
        exclude_modules, layers_to_transform, layers_pattern: what to leave out of these.
        r, lora_alpha, lora_dropout: rank, lora_alpha / r is the scaling, dropout before lora_A in [0, 1).
        rank_pattern, alpha_pattern: {regular expression for the end of a module's name: its own r or lora_alpha}.
        bias: "none", "all" or "lora_only": which biases train too.
        use_rslora: scaling is lora_alpha / sqrt(r) (arXiv:2312.03732).
        use_dora: the lengths of the weight's rows train too (DoRA, arXiv:2402.09353).
        modules_to_save: names of further modules that train and are saved whole.
        init_lora_weights: True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora".
        task_type: one of TaskType; for classification the classifier is saved too.

    Raises:
        TypeError: an unknown field, as for every dataclass, or a value of the wrong type.
        ValueError: a value out of range, or a field of PEFT's that this package does not support set to a value that
            would have an effect. The message names field and value.
    """

    r: int = 8
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False  # set by what is found: a transformers Conv1D is recognised by its type
    bias: str = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    megatron_config: None = None
    megatron_core: str = "megatron.core"
    trainable_token_indices: None = None
    loftq_config: dict = field(default_factory=dict)
    eva_config: None = None
    corda_config: None = None
    lora_ga_config: None = None
    use_dora: bool = False
    velora_config: None = None
    alora_invocation_tokens: None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    monteclora_config: None = None
    layer_replication: None = None
    lora_bias: bool = False
    target_parameters: None = None
    use_bdlora: None = None
    arrow_config: None = None
    kasa_config: None = None
    ensure_weight_tying: bool = False

    KIND = PeftType.LORA

    def __post_init__(self):
        super().__post_init__()
        for name, accepted in UNSUPPORTED.items():
            if getattr(self, name) != accepted:
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported; leave it at {accepted!r}")
        for name in ("fan_in_fan_out", "use_rslora", "use_dora"):
            validate.flag(name, getattr(self, name))
        validate.rank("r", self.r)
        validate.positive("lora_alpha", self.lora_alpha)
        if not isinstance(self.lora_dropout, (int, float)):
            raise TypeError(f"lora_dropout={self.lora_dropout!r} must be a number in [0, 1)")
        _check.dropout_p("lora_dropout", self.lora_dropout)
        if self.bias not in BIAS:
            raise ValueError(f"bias={self.bias!r} must be one of {', '.join(BIAS)}")
        check_init(self.init_lora_weights)
        self.target_modules = validate.names_or_pattern("target_modules", self.target_modules)
        self.exclude_modules = validate.names_or_pattern("exclude_modules", self.exclude_modules)
        self.modules_to_save = validate.module_names("modules_to_save", self.modules_to_save)
        self.rank_pattern = validate.patterns("rank_pattern", self.rank_pattern, validate.rank)
        self.alpha_pattern = validate.patterns("alpha_pattern", self.alpha_pattern, validate.positive)
        self._check_layers()

    def _check_layers(self):
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r} needs target_modules to be a list, not {self.target_modules!r}")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform to be given too")
        self.layers_to_transform = validate.layers("layers_to_transform", self.layers_to_transform)
        if isinstance(self.layers_pattern, str):
            validate.regex("layers_pattern", self.layers_pattern)
        else:
            for pattern in validate.names("layers_pattern", self.layers_pattern) or ():
                validate.regex("layers_pattern", pattern)
