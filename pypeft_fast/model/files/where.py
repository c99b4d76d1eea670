"""Where an adapter's folder is: on this machine, or on the hub and from there in its cache."""

import inspect
import os

from .layout import CONFIG, PICKLE, WEIGHTS, pending_names
from .reading import NoAdapter


def split(options: dict) -> tuple[dict, dict]:
    """(what says where the files are, the other options), of the keywords of from_pretrained or load_adapter."""
    from huggingface_hub import hf_hub_download

    names = {*inspect.signature(hf_hub_download).parameters, "use_auth_token"} - {"repo_id", "filename"}
    where = {name: value for name, value in options.items() if name in names}
    return where, {name: value for name, value in options.items() if name not in names}


def folder_of(model_id, where: dict, needs_config=True) -> str:
    """The adapter's folder: that one itself, or a snapshot in the hub's cache, downloaded if need be.

    As in PEFT a folder without an adapter's files is taken for a hub's id, if it can be one. NoAdapter: neither has it.
    """
    path = os.path.join(os.fspath(model_id), where.get("subfolder") or "")
    path = path.rstrip("/") or path
    if _has_adapter(path) or not _can_be_hub_id(model_id):
        return path
    try:
        return _download(model_id, where, needs_config)
    except (OSError, ValueError) as error:  # the hub's errors, an id that it refuses, or not cached while offline
        there = "this folder holds no adapter" if os.path.isdir(path) else "there is no such folder"
        raise NoAdapter(
            f"Can't find '{CONFIG}' and {WEIGHTS} at '{path}': {there}, nor are they on the hub or in its cache "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); give an adapter's folder or a hub id"
        ) from error


def _has_adapter(path) -> bool:
    """PermissionError where that cannot be seen."""
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: permission denied; ask its owner for access") from None
    return any(name in names for name in (CONFIG, WEIGHTS, PICKLE)) or bool(pending_names(path))


def _can_be_hub_id(model_id) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not isinstance(model_id, str):
        return False
    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return True


def _download(repo, where, needs_config) -> str:
    """Both files of one commit; again if the branch moved on between the two."""
    from huggingface_hub import hf_hub_download
    from transformers.utils import http_user_agent

    options = {"user_agent": http_user_agent()} | {k: v for k, v in where.items() if k != "use_auth_token"}
    if where.get("token") is None and where.get("use_auth_token") is not None:
        options["token"] = where["use_auth_token"]
    for _ in range(3):
        weights = hf_hub_download(repo, WEIGHTS, **options)
        config = hf_hub_download(repo, CONFIG, **options) if needs_config else weights
        if os.path.dirname(weights) == os.path.dirname(config):
            return os.path.dirname(weights)
    raise ValueError("its files change all the time; give a revision")
