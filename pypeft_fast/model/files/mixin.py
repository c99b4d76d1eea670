"""SafeFiles: a mixin for PEFT's PeftModel with atomic saving, and with checks before loading."""

import contextlib
import itertools
import os
import tempfile
from typing import Any

import peft
from torch import nn

from .config import check_alike
from .contents import Contents, without_collections
from .dry_run import peft_class, present, rehearse
from .locks import lock_of
from .names import check_adapter_name, plain_names
from .own_tensors import like_another
from .places import places_of
from .plain_lora import place_of_plain_lora
from .quantization_card import state_quantization
from .reading import folder_of, opened
from .saving import own_names, saving
from .snapshot import check_loaded, loading
from .swap import swap
from .undo import undone_on_error, written_in_place
from .vocabulary import resolve


class SafeFiles:
    """`class PeftModel(SafeFiles, peft.PeftModel)` saves and loads as PEFT does, with these differences.

    After an interrupted save the folder holds the complete earlier adapter or the complete new one. After concurrent
    saves the folder holds the complete adapter of one of them. Saving does not write through a symbolic link. Before
    loading changes the model, the files are read and checked against the tensors that PEFT would create. The config and
    the weights that are loaded come from the same save.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs,
    ) -> None:
        """PEFT's save_pretrained, atomic. OSError names the folder; ValueError names an argument that is refused."""
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, not safetensors; leave the argument out")
        adapters = list(self.peft_config if selected_adapters is None else selected_adapters)
        for adapter in adapters:
            if adapter not in self.peft_config:
                raise ValueError(
                    f"selected_adapters: the model has no adapter {adapter!r}; it has {', '.join(self.peft_config)}"
                )
            check_adapter_name(adapter)
        configs = {"" if adapter == "default" else adapter: self.peft_config[adapter] for adapter in adapters}
        if kwargs.get("state_dict") is not None:
            kwargs["state_dict"] = own_names(self, kwargs["state_dict"])
        kwargs |= dict(
            selected_adapters=adapters,
            save_embedding_layers=resolve(save_embedding_layers, self.get_base_model(), configs.values()),
            is_main_process=is_main_process,
            path_initial_model_for_weight_conversion=path_initial_model_for_weight_conversion,
        )
        # A process that is not the main one takes part in the gathering of all ranks, but leaves no file.
        with (
            saving(save_directory, configs, self.peft_config)
            if is_main_process
            else tempfile.TemporaryDirectory() as scratch
        ):
            super().save_pretrained(str(scratch), **kwargs)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """PEFT's README.md, plus a section on the quantisation of the base model."""
        super().create_or_update_model_card(output_dir)
        state_quantization(os.path.join(output_dir, "README.md"), getattr(self.get_base_model(), "config", None))

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: peft.PeftConfig | None = None,
        **kwargs,
    ) -> peft.PeftModel:
        """PEFT's from_pretrained, after checks. FileNotFoundError, PermissionError or ValueError, before the model
        changes, names the file, the field or the tensor."""
        check_adapter_name(adapter_name)
        where, options = cls._split_kwargs(kwargs)
        with (
            opened(folder_of(model_id, where), needs_config=config is None) as pair,
            without_collections(),
            Contents.read(pair, config) as contents,
        ):
            return cls._first(model, contents, adapter_name, is_trainable, options)

    @classmethod
    def _first(cls, model, contents, adapter_name, is_trainable, options, place=None, undo=None) -> peft.PeftModel:
        """from_pretrained of a file that has been read. place: of the adapter, if that is known already. undo: as in
        `loading`; None: after an error the model is as before."""
        config = contents.config
        if options.get("key_mapping") is None and not config.is_prompt_learning:
            options["key_mapping"] = getattr(model, "_checkpoint_conversion_mapping", None)
        place = place or place_of_plain_lora(model, config, adapter_name, contents.tensors, options)
        place = place or rehearse(model, config, adapter_name, wraps=True)
        given = dict(options)
        with loading(contents, config, place, options, undo or _undoing(model, adapter_name)) as folder:
            loaded = peft_class(cls).from_pretrained(
                model, folder, adapter_name, is_trainable, config=config, **options
            )
            if place is None:
                check_loaded(loaded, contents, adapter_name, given)
            return cls._adopt(loaded)

    @classmethod
    def _adopt(cls, model):
        """Returns the model that from_pretrained returns, given the model that PEFT has made."""
        return model

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, is_trainable: bool = False, **kwargs) -> Any:
        """PEFT's load_adapter, after checks. If the model has an adapter of this name, that adapter gets the file's
        values.

        Threads that load into one model take turns. Raises as from_pretrained does, and ValueError if the file differs
        from that adapter in method, rank or scaling.
        """
        check_adapter_name(adapter_name)
        where, options = self._split_kwargs(kwargs)
        is_new = adapter_name not in self.peft_config
        with (
            opened(folder_of(model_id, where), needs_config=is_new) as pair,
            without_collections(),
            Contents.read(pair) as contents,
            lock_of(self),
        ):
            return self._load(contents, adapter_name, is_trainable, options)

    def _load(self, contents, adapter_name, is_trainable, options, place=None, undo=None) -> Any:
        """load_adapter of a file that has been read. place, undo: as in `_first`."""
        pair, config, mine = contents.pair, contents.config, self.peft_config.get(adapter_name)
        if mine is not None and config is not None:
            check_alike(pair.config_path, adapter_name, mine, config)
        if mine is not None:
            result = swap(self, adapter_name, pair.weights_path, contents.tensors, is_trainable, options)
            if result is not None:
                return result
        if place is None and not (mine or config).is_adaption_prompt:  # PEFT keeps inactive ones outside of the model
            place = present(self, adapter_name) if mine else like_another(self, config)
            place = place or rehearse(self, config, adapter_name)
        given = dict(options)
        with loading(contents, mine or config, place, options, undo or _undoing(self, adapter_name)) as folder:
            result = super().load_adapter(folder, adapter_name, is_trainable, **options)
            if place is None:
                check_loaded(self, contents, adapter_name, given)
            return result

    @classmethod
    def _load_all(cls, model, contents: dict, is_trainable, options) -> peft.PeftModel:
        """Loads {name: Contents} into a base model, or into a model of this class; all are checked before any is
        loaded. Returns the PeftModel; `contents` is empty then, so that no loaded file takes memory any longer.
        """
        is_new = not isinstance(model, peft.PeftModel)
        if is_new and options.get("key_mapping") is None:
            options = options | {"key_mapping": getattr(model, "_checkpoint_conversion_mapping", None)}
        with lock_of(model):
            places = places_of(model, contents, options)
            with _all_undone_on_error(model, contents):
                for name, place in places.items():
                    its = contents.pop(name)
                    if isinstance(model, peft.PeftModel):
                        model._load(its, name, is_trainable, dict(options), place, contextlib.nullcontext)
                    else:
                        model = cls._first(model, its, name, is_trainable, dict(options), place, contextlib.nullcontext)
            return model

    def add_adapter(self, adapter_name: str, peft_config: peft.PeftConfig, *args, **kwargs) -> None:
        """PEFT's add_adapter. ValueError, before any change, if adapter_name is not a valid name."""
        check_adapter_name(adapter_name)
        return super().add_adapter(adapter_name, peft_config, *args, **kwargs)


def _undoing(model, adapter_name):
    """A function of names in a file that returns a context, after whose error the model is as before."""
    return lambda names: undone_on_error(model, written_in_place(model, adapter_name, names))


def _all_undone_on_error(model, contents):
    """A context after whose error none of these adapters is loaded."""
    written = [written_in_place(model, name, plain_names(its.tensors).values()) for name, its in contents.items()]
    return undone_on_error(model, itertools.chain.from_iterable(written))
