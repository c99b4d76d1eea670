"""PeftModel: a model with named adapters, after PEFT's class of the same name."""

import contextlib
import copy
from pathlib import Path

import torch
from torch import nn

from . import files
from .config import LoraConfig, TaskType
from .lora_layer import BASE, LoraLayer
from .lora_model import LoraModel

PREFIX = "base_model.model."  # of every name in an adapter's file


def get_peft_model(model, peft_config, adapter_name="default", *, autocast_adapter_dtype=True) -> "PeftModel":
    """Puts the adapter that peft_config describes on a model, in place, and freezes the rest.

    autocast_adapter_dtype: adapters over a float16 or bfloat16 layer are float32.

    Raises ValueError or TypeError before anything is changed: a model that is wrapped already, a config that matches
    nothing or asks for what is not supported.
    """
    if not isinstance(peft_config, LoraConfig):
        raise TypeError(f"peft_config is a {type(peft_config).__name__}, expected a pypeft_fast.LoraConfig")
    if isinstance(model, PeftModel) or any(isinstance(m, LoraLayer) for m in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} has adapters already; add another with model.add_adapter(name, config), or "
            "take them off first with model.unload() or model.merge_and_unload()"
        )
    kind = TASK_MODELS.get(peft_config.task_type, PeftModel)
    return kind(model, peft_config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)


class PeftModel(nn.Module):
    """A model with named adapters: `.base_model` is the LoraModel, `.base_model.model` the model itself.

    Any attribute that is not found here is the model's own (config, device, dtype, gradient_checkpointing_enable, ...).
    """

    def __init__(self, model, peft_config, adapter_name="default", *, autocast_adapter_dtype=True):
        super().__init__()
        self.base_model = LoraModel(model)
        self.peft_config: dict[str, LoraConfig] = {}
        self.add_adapter(adapter_name, peft_config, autocast_adapter_dtype=autocast_adapter_dtype)
        self.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
        self.train(model.training)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    # Running

    def forward(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """The model's forward. adapter_names: one adapter a row of the batch, "__base__" for none (eval mode only)."""
        with self._rows(adapter_names):
            return self.get_base_model()(*args, **kwargs)

    def generate(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """The model's generate; adapter_names as in forward."""
        with self._rows(adapter_names):
            return self.get_base_model().generate(*args, **kwargs)

    def _rows(self, adapter_names):
        if adapter_names is None:
            return contextlib.nullcontext()
        return self.base_model.rows(adapter_names, self.peft_config)

    def get_base_model(self):
        """The user's model, with adapters in its layers."""
        return self.base_model.model

    # Adapters

    @property
    def active_adapters(self) -> list[str]:
        return list(self.base_model.active)

    @property
    def active_adapter(self) -> str | list[str]:
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def active_peft_config(self) -> LoraConfig:
        return self.peft_config[self.active_adapters[0]]

    def _known(self, name):
        if name not in self.peft_config:
            raise ValueError(f"there is no adapter {name!r}; there are {', '.join(self.peft_config) or 'none'}")

    def _free(self, name):
        if name in self.peft_config:
            raise ValueError(f"adapter_name={name!r} exists already; delete_adapter({name!r}) first, or take another")
        if not isinstance(name, str) or not name or "." in name or name == BASE or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"adapter_name={name!r} must be a name without dots, and not {BASE} or a method of modules"
            )

    def add_adapter(self, adapter_name, peft_config, *, autocast_adapter_dtype=True) -> None:
        """A new adapter beside the others; it becomes active by set_adapter. ValueError if the name is taken."""
        self._free(adapter_name)
        if self.peft_config and peft_config.bias != "none":
            trained = [n for n, c in self.peft_config.items() if c.bias != "none"]
            if trained:
                raise ValueError(f"bias={peft_config.bias!r}: adapter {trained[0]!r} trains the same biases already")
        config, model = copy.deepcopy(peft_config), self.get_base_model()
        path = getattr(model, "name_or_path", None)
        config.base_model_name_or_path = config.base_model_name_or_path or path or None
        if config.task_type is None:
            config.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        active = self.active_adapters
        self.base_model.inject(adapter_name, config, autocast_adapter_dtype)
        self.peft_config[adapter_name] = config
        self.base_model.set_adapter(active, self.peft_config, trainable=bool(active) and self._is_trainable(active))

    def _is_trainable(self, names):
        return not any(self.peft_config[name].inference_mode for name in names)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes this adapter (or these, summed) the active one; only active adapters require gradients."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for name in names:
            self._known(name)
            self.peft_config[name].inference_mode = inference_mode
        self.base_model.set_adapter(names, self.peft_config, trainable=not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter. If it was active and others are left, the first of those becomes active."""
        self._known(adapter_name)
        was_active = adapter_name in self.active_adapters
        self.base_model.delete(adapter_name)
        del self.peft_config[adapter_name]
        if was_active and not self.active_adapters and self.peft_config:
            self.set_adapter(next(iter(self.peft_config)))

    @contextlib.contextmanager
    def disable_adapter(self):
        """Within the block the model computes what the base model does (but for biases that were trained)."""
        with self.base_model.disabled():
            yield

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Folds adapters (default: the active ones) into the weights, in float32; undone by unmerge_adapter."""
        for name in adapter_names or ():
            self._known(name)
        self.base_model.merge(adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Restores the frozen weights, bit for bit."""
        self.base_model.unmerge()

    def merge_and_unload(self, progressbar=False, safe_merge=False, adapter_names: list[str] | None = None):
        """The user's model with the adapters (default: the active ones) folded into its weights."""
        self.merge_adapter(adapter_names, safe_merge)
        return self.base_model.unload(adapter_names)

    def unload(self):
        """The user's model as it was, without adapters (modules_to_save keep the active adapter's copy)."""
        self.unmerge_adapter()
        return self.base_model.unload([])

    # Parameters

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable parameters, all parameters)."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    # Files

    def _tensors(self, adapter) -> dict[str, torch.Tensor]:
        """{name in the file: tensor of this model} of one adapter."""
        return {PREFIX + k: v for k, v in self.base_model.tensors(adapter, self.peft_config[adapter]).items()}

    def save_pretrained(self, save_directory, selected_adapters: list[str] | None = None, **options) -> None:
        """Writes adapter_config.json and adapter_model.safetensors: of "default" into the folder itself, of every
        other adapter into a folder of its name inside it. Atomic: a crash leaves an earlier adapter whole.

        selected_adapters: the names of those to save; all of them by default.
        """
        accepted = {"safe_serialization": True, "is_main_process": None, "save_embedding_layers": None}
        for name, value in options.items():
            if name not in accepted:
                raise TypeError(f"save_pretrained has no option {name}")
            if name == "safe_serialization" and not value:
                raise ValueError("safe_serialization=False would write a pickle; only safetensors are written")
            if name == "save_embedding_layers" and value is True:
                raise ValueError("save_embedding_layers=True is not supported; name them in modules_to_save instead")
        if options.get("is_main_process") is False:
            return
        for adapter in self.peft_config if selected_adapters is None else selected_adapters:
            self._known(adapter)
            config = copy.deepcopy(self.peft_config[adapter])
            config.inference_mode = True
            folder = Path(save_directory) if adapter == "default" else Path(save_directory) / adapter
            files.save_adapter(folder, config, self._tensors(adapter))

    @classmethod
    def from_pretrained(
        cls, model, path, adapter_name="default", is_trainable=False, config=None, *, autocast_adapter_dtype=True
    ):
        """Puts the adapter in a folder on a model; for inference, unless is_trainable.

        Raises FileNotFoundError, ValueError or TypeError that names the file, the field or the tensor that does not
        fit, before the model is changed.
        """
        if isinstance(model, PeftModel):
            raise ValueError("this model has adapters already; use model.load_adapter(path, adapter_name)")
        config, tensors = _read(path, config, LoraModel(model), is_trainable)
        wrapped = get_peft_model(model, config, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        wrapped._fill(adapter_name, tensors, is_trainable)
        return wrapped

    def load_adapter(self, path, adapter_name, is_trainable=False, *, autocast_adapter_dtype=True) -> None:
        """Adds the adapter in a folder under this name, not yet active; an adapter of this name is overwritten.

        Raises as from_pretrained does, before anything is changed.
        """
        config, tensors = _read(path, None, self.base_model, is_trainable)
        if adapter_name in self.peft_config:
            expected = {k: v.shape for k, v in self._tensors(adapter_name).items()}
            files.check_tensors(path, tensors, expected)
        else:
            self.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast_adapter_dtype)
        self._fill(adapter_name, tensors, is_trainable)

    @torch.no_grad()
    def _fill(self, adapter, tensors, is_trainable):
        for name, parameter in self._tensors(adapter).items():
            parameter.copy_(tensors[name])
        if not is_trainable:
            self.eval()


def _read(path, config, tuner, is_trainable):
    """The config and the tensors of a folder, checked against the model that they are to go on."""
    config = config or files.load_config(path)
    config.inference_mode = not is_trainable
    tensors = files.load_tensors(path)
    expected = {PREFIX + k: shape for k, shape in tuner.expected(config).items()}
    files.check_tensors(path, tensors, expected)
    return config, tensors


# One class a task, so that Trainer, which reads the argument names off forward, finds the inputs and the labels.


class PeftModelForCausalLM(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels)
        return super().forward(**_given(given), **kwargs)


class PeftModelForSeq2SeqLM(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return super().forward(**_given(given | {"decoder_input_ids": decoder_input_ids}), **kwargs)


class PeftModelForClassification(PeftModel):
    """Of sequences and of tokens."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        return super().forward(**_given(given), **kwargs)


class PeftModelForQuestionAnswering(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, start_positions=None, end_positions=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask)
        given |= dict(start_positions=start_positions, end_positions=end_positions)
        return super().forward(**_given(given), **kwargs)


class PeftModelForFeatureExtraction(PeftModel):
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        given = dict(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return super().forward(**_given(given), **kwargs)


def _given(arguments):
    return {name: value for name, value in arguments.items() if value is not None}


TASK_MODELS = {
    TaskType.CAUSAL_LM: PeftModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: PeftModelForSeq2SeqLM,
    TaskType.SEQ_CLS: PeftModelForClassification,
    TaskType.TOKEN_CLS: PeftModelForClassification,
    TaskType.QUESTION_ANS: PeftModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: PeftModelForFeatureExtraction,
}
