"""SafeFiles: a class to stand before PEFT's PeftModel, whose saving is atomic and whose loading is checked first."""

import contextlib
import json
import os
import tempfile

from safetensors.torch import save_file

from .alike import check_alike
from .check import check
from .dry_run import peft_class, present, rehearse
from .fields import known, parse, to_config
from .layout import CONFIG, WEIGHTS
from .names import check_adapter_name
from .reading import opened
from .rewriting import own_names
from .saving import saving
from .tensors import opened_file
from .vocabulary import resolve
from .where import folder_of, split

OLD_FILES = ("BITFIT", "BOTTLENECK")  # methods of this package whose tensors had other names


class SafeFiles:
    """`class PeftModel(SafeFiles, peft.PeftModel)` saves and loads as PEFT does, with these differences.

    A save that is cut off leaves the earlier adapter or the new one, several savers at once leave one whole adapter
    each, and nothing is written through a link. Before loading changes the model, the files are read and checked
    against what PEFT would create; the config and the weights are always of one save.
    """

    def save_pretrained(
        self,
        save_directory,
        safe_serialization=True,
        selected_adapters=None,
        save_embedding_layers="auto",
        is_main_process=True,
        path_initial_model_for_weight_conversion=None,
        **kwargs,
    ):
        """PEFT's save_pretrained, atomically. Raises OSError that names the folder, ValueError for what is refused."""
        if not safe_serialization:
            raise ValueError(
                "safe_serialization=False would write a pickle; only safetensors are written: leave it out"
            )
        adapters = list(self.peft_config if selected_adapters is None else selected_adapters)
        for adapter in adapters:
            if adapter not in self.peft_config:
                there = ", ".join(self.peft_config)
                raise ValueError(f"selected_adapters: there is no adapter {adapter!r}; there are {there}")
            check_adapter_name(adapter)
        configs = {"" if adapter == "default" else adapter: self.peft_config[adapter] for adapter in adapters}
        if kwargs.get("state_dict") is not None:
            kwargs["state_dict"] = own_names(self, kwargs["state_dict"])
        options = kwargs | dict(
            selected_adapters=adapters,
            save_embedding_layers=resolve(save_embedding_layers, self.get_base_model(), configs.values()),
            is_main_process=is_main_process,
            path_initial_model_for_weight_conversion=path_initial_model_for_weight_conversion,
        )
        if is_main_process:
            with saving(save_directory, configs) as scratch:
                super().save_pretrained(str(scratch), **options)
        else:  # it takes part where all ranks gather, and leaves no file
            with tempfile.TemporaryDirectory() as nowhere:
                super().save_pretrained(nowhere, **options)

    @classmethod
    def from_pretrained(cls, model, model_id, adapter_name="default", is_trainable=False, config=None, **kwargs):
        """PEFT's from_pretrained, after checks. Raises FileNotFoundError, PermissionError, ValueError or TypeError that
        names the file, the field or the tensor, before the model is changed."""
        check_adapter_name(adapter_name)
        where, options = split(kwargs)
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(opened(folder_of(model_id, where, config is None), config is None))
            fields = None
            if config is None:
                fields = known(pair.config_path, parse(pair.config_path, pair.config))
                config = to_config(pair.config_path, fields)
            mapping = options.get("key_mapping")
            if mapping is None and not config.is_prompt_learning:
                mapping = getattr(model, "_checkpoint_conversion_mapping", None)
            place = rehearse(model, config, adapter_name)
            snapshot = _snapshot(stack, pair, fields, config, place, options | {"key_mapping": mapping})
            theirs = peft_class(cls)
            loaded = theirs.from_pretrained(model, snapshot, adapter_name, is_trainable, config=config, **options)
        return cls._adopt(loaded)

    @classmethod
    def _adopt(cls, model):
        """The model that from_pretrained returns, of the model that PEFT has made."""
        return model

    def load_adapter(self, model_id, adapter_name, is_trainable=False, **kwargs):
        """PEFT's load_adapter, after checks; an adapter of this name gets the file's values.

        Raises as from_pretrained does, and ValueError if the adapter of this name has another method, rank or scaling.
        """
        check_adapter_name(adapter_name)
        where, options = split(kwargs)
        is_new = adapter_name not in self.peft_config
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(opened(folder_of(model_id, where, is_new), is_new))
            config = fields = None
            if pair.config is not None:
                fields = known(pair.config_path, parse(pair.config_path, pair.config))
                config = to_config(pair.config_path, fields)
            mine = config if is_new else self.peft_config[adapter_name]
            if not is_new and config is not None:
                check_alike(pair.folder, adapter_name, mine, config)
            place = None
            if not mine.is_adaption_prompt:  # PEFT keeps inactive ones outside of the model
                place = rehearse(self, mine, adapter_name) if is_new else present(self, adapter_name)
            snapshot = _snapshot(stack, pair, fields, mine, place, options)
            return super().load_adapter(snapshot, adapter_name, is_trainable, **options)

    def add_adapter(self, adapter_name, peft_config, *args, **kwargs):
        """PEFT's add_adapter; ValueError if the name cannot be an adapter's, before anything is changed."""
        check_adapter_name(adapter_name)
        return super().add_adapter(adapter_name, peft_config, *args, **kwargs)


def _snapshot(stack, pair, fields, config, place, options) -> str:
    """A folder, until the stack closes, with the files that were checked and no others: the config's known fields, and
    a link to the open weights, or the weights by other names if they had to be renamed."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adapter-"))
    if fields is not None:
        with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
            json.dump(fields, file)
    weights = os.path.join(folder, WEIGHTS)
    file = stack.enter_context(opened_file(pair.weights_path, pair.pinned))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind in OLD_FILES:
        file = file.current(kind)
    names = check(file, place, options.get("key_mapping"), options.get("ignore_mismatched_sizes", False))
    if file.is_original and all(old == new for old, new in names.items()):
        os.symlink(pair.pinned, weights)
    else:
        save_file({new: file.read(old) for old, new in names.items()}, weights, metadata={"format": "pt"})
    return folder
