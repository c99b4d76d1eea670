"""PeftModel: a model with named adapters, after PEFT's class of the same name."""

import contextlib
import copy
import warnings
from pathlib import Path

import torch
from torch import nn

from . import aliases, contents, files
from .config import PeftConfig
from .layer import BASE, AdapterLayer
from .prefix import NOT_RESUMED
from .prompt_layer import PromptLayer
from .registry import CONFIGS, method_of
from .tuner import Tuner


def check_bare(model, remedy) -> None:
    """TypeError if it is no module, ValueError if it has adapters, ours or PEFT's; the message names the remedy."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={model!r} is a {type(model).__name__}, expected a torch.nn.Module; load the model first"
        )
    if isinstance(model, PeftModel) or any(_has_adapters(m) for m in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} has adapters already; add another with {remedy}, or take them off first with "
            "model.unload() or model.merge_and_unload()"
        )


def can_name_adapter(name) -> bool:
    """An adapter's name becomes part of its parameters' names and an attribute of an nn.ModuleDict."""
    return isinstance(name, str) and name not in ("", BASE) and "." not in name and not hasattr(nn.ModuleDict, name)


def check_config(config) -> None:
    if not isinstance(config, tuple(CONFIGS.values())):
        accepted = ", ".join(kind.__name__ for kind in CONFIGS.values())
        kind = f"{type(config).__module__}.{type(config).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"peft_config is a {kind}, expected one of pypeft_fast's {accepted}")


def _has_adapters(module) -> bool:
    """A layer of ours, or one that PEFT has put there, or a module that virtual tokens are put into."""
    if any(isinstance(getattr(hook, "__self__", None), PromptLayer) for hook in module._forward_pre_hooks.values()):
        return True
    return isinstance(module, AdapterLayer) or any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__)


class PeftModel(nn.Module):
    """A model with named adapters: `.base_model` is the Tuner, `.base_model.model` the model itself.

    Any attribute that is not found here is the model's own (config, device, dtype, gradient_checkpointing_enable, ...).
    """

    def __init__(self, model, peft_config, adapter_name="default", *, autocast_adapter_dtype=True, fresh=True):
        """fresh: the adapter's values are to be trained; else a file's will replace them."""
        check_bare(model, "model.add_adapter(name, config)")
        super().__init__()
        self.base_model = Tuner(model)
        self._add(adapter_name, peft_config, autocast_adapter_dtype, fresh)
        self.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
        self.train(model.training)
        self.register_state_dict_post_hook(aliases.drop)
        self.register_load_state_dict_pre_hook(aliases.restore)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    # Running

    def forward(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """The model's forward. adapter_names: one adapter a row of the batch, "__base__" for none (eval mode only)."""
        with self._rows(adapter_names, args, kwargs):
            return self.get_base_model()(*args, **kwargs)

    def generate(self, *args, adapter_names: list[str] | None = None, **kwargs):
        """The model's generate; adapter_names as in forward, one a prompt: beams and sequences of it share the name."""
        model = self.get_base_model()
        with self._rows(adapter_names, args, kwargs):
            encoder = self.base_model.prompts and self.base_model.prompts.current()
            if encoder:
                args, kwargs = encoder.before_generate(model, args, kwargs)
            return model.generate(*args, **kwargs)

    def _rows(self, adapter_names, args, kwargs):
        if adapter_names is None:
            return contextlib.nullcontext()
        return self.base_model.rows(adapter_names, _batch_size(args, kwargs))

    def get_base_model(self):
        """The user's model, with adapters in its layers."""
        return self.base_model.model

    # Adapters

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The config of each adapter, by its name."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        return list(self.base_model.active_adapters)

    @property
    def active_adapter(self) -> str | list[str]:
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the first active adapter; ValueError if none is active."""
        if not self.active_adapters:
            raise ValueError(f"no adapter is active; set_adapter(name) of {', '.join(self.peft_config) or 'a new one'}")
        return self.peft_config[self.active_adapters[0]]

    def _free(self, name):
        if name in self.peft_config:
            raise ValueError(f"adapter_name={name!r} exists already; delete_adapter({name!r}) first, or take another")
        if not can_name_adapter(name):
            raise ValueError(
                f"adapter_name={name!r} must be a name without dots, and not {BASE} or a method of modules"
            )

    def add_adapter(self, adapter_name, peft_config, *, autocast_adapter_dtype=True) -> None:
        """A new adapter beside the others; it becomes active by set_adapter. ValueError if the name is taken."""
        self._add(adapter_name, peft_config, autocast_adapter_dtype, fresh=True)

    def _add(self, adapter_name, peft_config, autocast_adapter_dtype, fresh):
        check_config(peft_config)
        self._free(adapter_name)
        config, model = copy.deepcopy(peft_config), self.get_base_model()
        path = getattr(model, "name_or_path", None)
        config.base_model_name_or_path = config.base_model_name_or_path or path or None
        if config.task_type is None:
            config.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        self.base_model.inject(adapter_name, config, autocast_adapter_dtype, fresh)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes this adapter (or these, summed) the active one; only active adapters require gradients."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter. If it was active and others are left, the first of those becomes active.

        If it was the last, none is active, and as in PEFT a new one is not until set_adapter; a warning says so.
        """
        self.base_model.check_known(adapter_name)
        was_active = adapter_name in self.active_adapters
        self.base_model.delete(adapter_name)
        if was_active and not self.active_adapters and self.peft_config:
            first = next(iter(self.peft_config))
            self.set_adapter(first, inference_mode=self.peft_config[first].inference_mode)
        if not self.peft_config:
            warnings.warn("no adapter is left: one that is added now trains and counts after set_adapter", stacklevel=2)

    @contextlib.contextmanager
    def disable_adapter(self):
        """Within the block the model computes what the base model does (but for biases that were trained)."""
        with self.base_model.disabled():
            yield

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Folds adapters (default: the active ones) into the weights, in float32; undone by unmerge_adapter."""
        for name in adapter_names or ():
            self.base_model.check_known(name)
        self.base_model.merge(adapter_names, safe_merge)

    def unmerge_adapter(self) -> None:
        """Restores the frozen weights, bit for bit."""
        self.base_model.unmerge()

    def merge_and_unload(self, progressbar=False, safe_merge=False, adapter_names: list[str] | None = None):
        """The user's model with the adapters (default: the active ones) folded into its weights."""
        self.merge_adapter(adapter_names, safe_merge)
        return self.base_model.unload(adapter_names)

    def unload(self):
        """The user's model with its weights as they were, without adapters.

        As in PEFT, a module in modules_to_save is the active adapter's copy; unload within disable_adapter() for the
        original.
        """
        self.unmerge_adapter()
        return self.base_model.unload()

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
        return contents.tensors(self.base_model, adapter)

    def save_pretrained(
        self, save_directory, selected_adapters: list[str] | None = None, save_embedding_layers="auto", **options
    ) -> None:
        """Writes adapter_config.json and adapter_model.safetensors: of "default" into the folder itself, of every
        other adapter into a folder of its name inside it. A crash leaves the earlier adapter or the new one.

        selected_adapters: the names of those to save; all of them by default.
        save_embedding_layers: whether to write the embeddings too; "auto": if the vocabulary was resized.
        """
        for name, value in options.items():
            if name not in ("safe_serialization", "is_main_process"):
                raise TypeError(f"save_pretrained has no option {name}")
            if name == "safe_serialization" and not value:
                raise ValueError("safe_serialization=False would write a pickle; only safetensors are written")
        if not isinstance(save_embedding_layers, bool) and save_embedding_layers != "auto":
            raise ValueError(f"save_embedding_layers={save_embedding_layers!r} must be True, False or 'auto'")
        adapters = list(self.peft_config if selected_adapters is None else selected_adapters)
        for adapter in adapters:
            self.base_model.check_known(adapter)
        for adapter in adapters if options.get("is_main_process", True) else ():
            config, tensors = copy.deepcopy(self.peft_config[adapter]), self._tensors(adapter)
            config.inference_mode = True
            auto = save_embedding_layers == "auto" and contents.vocabulary_was_resized(self.base_model, config)
            if auto or save_embedding_layers is True:
                tensors |= contents.written_embeddings(self.base_model, config)
            folder = Path(save_directory) if adapter == "default" else Path(save_directory) / adapter
            files.save_adapter(folder, config, tensors)

    @classmethod
    def from_pretrained(
        cls, model, path, adapter_name="default", is_trainable=False, config=None, *, autocast_adapter_dtype=True
    ):
        """Puts the adapter in a folder on a model; for inference, unless is_trainable.

        Raises FileNotFoundError, ValueError or TypeError that names the file, the field or the tensor that does not
        fit, before the model is changed.
        """
        from .task_models import task_model

        check_bare(model, "model.load_adapter(path, adapter_name)")
        config, tensors = _read(path, config, Tuner(model), is_trainable)
        options = dict(autocast_adapter_dtype=autocast_adapter_dtype, fresh=False)
        wrapped = task_model(config)(model, config, adapter_name, **options)
        wrapped._fill(adapter_name, tensors, is_trainable)
        return wrapped

    def load_adapter(self, path, adapter_name, is_trainable=False, *, autocast_adapter_dtype=True) -> None:
        """Adds the adapter in a folder under this name, not yet active; an adapter of this name gets its values.

        Raises as from_pretrained does, before anything is changed, and ValueError if an adapter of this name has
        other layers, ranks or scalings than the folder's.
        """
        config, tensors = _read(path, None, self.base_model, is_trainable)
        if adapter_name in self.peft_config:
            self._check_alike(path, adapter_name, config)
        else:
            self._add(adapter_name, config, autocast_adapter_dtype, fresh=False)
        self._fill(adapter_name, tensors, is_trainable)

    def _check_alike(self, path, adapter, config):
        mine = self.peft_config[adapter]
        if type(mine) is not type(config):
            raise ValueError(
                f"{path} holds an adapter of {config.KIND.value}, but {adapter!r} is one of {mine.KIND.value}; load it "
                "under another name"
            )
        if getattr(mine, "prefix_projection", False) and not mine.inference_mode:
            raise ValueError(f"{path}, for the adapter {adapter!r} with prefix_projection=True: {NOT_RESUMED}")
        alike = method_of(mine).ALIKE
        differing = [n for n in alike if getattr(mine, n) != getattr(config, n)]
        if differing or self.base_model.plan(mine) != self.base_model.plan(config):
            what = (
                f"{differing[0]}={getattr(config, differing[0])!r}" if differing else "other layers, ranks or scalings"
            )
            raise ValueError(
                f"{path} has {what}, unlike the adapter {adapter!r} that is here; delete_adapter({adapter!r}) first, "
                "or load it under another name"
            )

    @torch.no_grad()
    def _fill(self, adapter, tensors, is_trainable):
        mine = contents.embeddings(self.base_model, self.peft_config[adapter]) | self._tensors(adapter)
        for name, value in tensors.items():
            mine[name].copy_(value)
        if not is_trainable:
            self.eval()


def _batch_size(args, kwargs) -> int | None:
    """Of a model's inputs: the length of the first that is a batch of rows. None if there is none, as when generate
    starts from nothing."""
    first = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "inputs")]
    tensors = [v for v in (*first, *args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim() > 1]
    return tensors[0].shape[0] if tensors else None


def _read(path, config, tuner, is_trainable):
    """The config and the tensors of a folder, checked against the model that they are to go on."""
    config = files.load_config(path) if config is None else copy.deepcopy(config)
    config.inference_mode = not is_trainable
    tensors = files.load_tensors(path)
    copies = contents.copies(tuner, config)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(copies)}
    optional = {name: tensor.shape for name, tensor in contents.embeddings(tuner, config).items()}
    files.check_tensors(path, tensors, contents.expected(tuner, config), optional)
    return config, tensors
