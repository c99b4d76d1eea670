"""Broken or foreign folders: the errors, and that neither the model nor its adapters are changed."""

import contextlib
import json
import os
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from pypeft_fast.model.files import reading
from tests.model.files.made import (
    CONFIG,
    WEIGHTS,
    PeftModel,
    adapted,
    assert_untouched,
    build,
    edit,
    lora_A,
    rewrite,
    state,
)
from tests.model.zoo import logits


@pytest.fixture
def folder(tmp_path):
    adapted().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def truncate(folder, size):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])


def huge_header(folder):
    (folder / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + b"{}")


def endless_header(folder):
    header = b'{"x": {"data_offsets": [0, 4]}}'
    (folder / WEIGHTS).write_bytes((2**64 - 1).to_bytes(8, "little") + header)


def deep_header(folder):
    header = b"[" * 100_000 + b"]" * 100_000
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def in_place_of(name, make):
    def spoil(folder):
        (folder / name).unlink()
        make(folder / name)

    return spoil


def text(value):
    return lambda folder: (folder / CONFIG).write_bytes(value)


def weights(change):
    return lambda folder: rewrite(folder, change)


def cast(dtype):
    return weights(lambda t: t.update({lora_A(t): t[lora_A(t)].to(dtype)}))


def put(value):
    def change(tensors):
        tensors[lora_A(tensors)][1, 2] = value

    return weights(change)


DEEP = b'{"peft_type": "LORA", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
RATHER_DEEP = b'{"peft_type": "LORA", "x": ' + b"[" * 200 + b"]" * 200 + b"}"
BROKEN = {
    "no folder": (shutil.rmtree, FileNotFoundError, "Can't find 'adapter_config.json' at .*there is no such folder"),
    "no config": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "Can't find.*it holds README.md, adapter_model"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "has no adapter_model.safetensors: it holds"),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        FileNotFoundError,
        "adapter_model.bin is a pickle and is never read; if you trust it",
    ),
    "weights are a folder": (in_place_of(WEIGHTS, os.mkdir), ValueError, f"{WEIGHTS} is a folder where a file"),
    "config is a folder": (in_place_of(CONFIG, os.mkdir), ValueError, f"{CONFIG} is a folder where a file"),
    "weights are a pipe": (in_place_of(WEIGHTS, os.mkfifo), ValueError, f"{WEIGHTS} is a device or pipe"),
    "config is a device": (
        in_place_of(CONFIG, lambda path: path.symlink_to("/dev/zero")),
        ValueError,
        f"{CONFIG} is a device or pipe where a file is expected",
    ),
    "cut in the data": (lambda f: truncate(f, -100), ValueError, "safetensors is truncated or corrupt"),
    "cut in the header": (lambda f: truncate(f, 20), ValueError, "truncated or corrupt"),
    "empty": (lambda f: truncate(f, 0), ValueError, "truncated or corrupt"),
    "huge header": (huge_header, ValueError, "truncated or corrupt.*copy or save the adapter again"),
    "endless header": (endless_header, ValueError, "truncated or corrupt"),
    "deep header": (deep_header, ValueError, "truncated or corrupt"),
    "config empty": (text(b" \n"), ValueError, "adapter_config.json is empty; save the adapter again"),
    "config cut": (text(b'{"peft_type": "LO'), ValueError, "adapter_config.json is not valid JSON"),
    "config a list": (text(b"[]"), ValueError, "a JSON object is expected, not list"),
    "config not UTF-8": (text(b'{"peft_type": "\xff"}'), ValueError, "adapter_config.json is not valid JSON"),
    "config 100,000 deep": (text(DEEP), ValueError, "more than 100 levels deep"),
    "config 200 deep": (text(RATHER_DEEP), ValueError, "x nests lists or objects more than 100 levels deep"),
    "an integer of 10,000 digits": (text(b'{"r": ' + b"9" * 10_000 + b"}"), ValueError, "is not valid JSON"),
    "a lone surrogate": (text(rb'{"peft_type": "\ud800"}'), ValueError, "'peft_type' holds .* not valid Unicode"),
    "unknown peft_type": (
        lambda f: edit(f, peft_type="MAGIC"),
        ValueError,
        "peft_type='MAGIC' is not a method of this peft",
    ),
    "peft_type a list": (lambda f: edit(f, peft_type=["LORA"]), ValueError, "is not a method of this peft"),
    "no peft_type": (lambda f: edit(f, peft_type=...), ValueError, "peft_type=None is not a method of this peft"),
    "unknown field": (
        lambda f: edit(f, colour=3),
        ValueError,
        "the field colour=3, which may change.*upgrade peft, or",
    ),
    "unknown field, on": (
        lambda f: edit(f, use_magic=True, magic_size=3),
        ValueError,
        "does not know the field use_magic=True",
    ),
    "a bad value": (
        lambda f: edit(f, task_type="CHESS"),
        ValueError,
        "adapter_config.json: Invalid task type: 'CHESS'",
    ),
    "another rank": (lambda f: edit(f, r=5), ValueError, r"lora_A.weight has shape \(4, .*expect \(5, "),
    "other targets": (lambda f: edit(f, target_modules=["nothing_here"]), ValueError, "nothing_here|no place for"),
    "another model": (
        weights(lambda t: t.update({lora_A(t): torch.zeros(4, 64)})),
        ValueError,
        r"has shape \(4, 64\), this model and config expect \(4, 32\)",
    ),
    "a tensor too few": (weights(lambda t: t.__delitem__(lora_A(t))), ValueError, "has no base_model.*q_proj.lora_A"),
    "a tensor too many": (
        weights(lambda t: t.update(extra=torch.zeros(1))),
        ValueError,
        "has extra, which this model and config have no place for",
    ),
    "no tensors": (
        weights(lambda t: t.clear()),
        ValueError,
        "has no base_model.*which this config needs on this model",
    ),
    "integers": (
        cast(torch.int32),
        ValueError,
        "q_proj.lora_A.weight has dtype torch.int32.*save it as float32",
    ),
    "bytes": (cast(torch.uint8), ValueError, "has dtype torch.uint8"),
    "bools": (cast(torch.bool), ValueError, "has dtype torch.bool"),
    "complex": (cast(torch.complex64), ValueError, "has dtype torch.complex64"),
    "float8": (cast(torch.float8_e4m3fn), ValueError, "has dtype torch.float8_e4m3fn"),
    "NaN": (put(float("nan")), ValueError, r"q_proj.lora_A.weight: 1 of 128 values.*first is nan at \[1, 2\]; load"),
    "infinite": (put(float("-inf")), ValueError, r"NaN or infinite, the first is -inf at \[1, 2\]"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused_and_the_model_left_as_it_was(how, folder):
    spoil, error, words = BROKEN[how]
    spoil(folder)
    base = build("llama")
    before = state(base)
    with pytest.raises(error, match=words):
        PeftModel.from_pretrained(base, folder)
    assert_untouched(base, before)
    model = adapted()
    before, expected = state(model), logits(model)
    with pytest.raises(error, match=words):
        model.load_adapter(folder, "second")
    only_config = how in ("no config", "another rank", "other targets", "a bad value")
    with (
        contextlib.nullcontext()
        if how in ("no config", "other targets")
        else pytest.raises(error, match="r=5, but .* has r=4" if how == "another rank" else words)
    ):
        model.load_adapter(folder, "default")
    if not only_config:
        assert_untouched(model, before)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, ""])
def test_a_file_that_may_not_be_read_is_not_called_missing(name, folder, monkeypatch):
    real = {function: getattr(os, function) for function in ("open", "stat", "listdir")}

    def refuse(function):
        def run(path, *args, **kwargs):
            if isinstance(path, (str, os.PathLike)) and os.fspath(path) == str(folder / name).rstrip("/"):
                raise PermissionError(13, "Permission denied", str(path))
            return real[function](path, *args, **kwargs)

        return run

    for function in real:
        monkeypatch.setattr(reading.os, function, refuse(function))
    with pytest.raises(PermissionError, match="cannot be read: permission denied; ask the owner"):
        PeftModel.from_pretrained(build("llama"), folder)


def test_a_file_in_place_of_the_folder(folder):
    with pytest.raises(FileNotFoundError, match="that is a file; give the adapter's folder"):
        PeftModel.from_pretrained(build("llama"), folder / CONFIG)


OFF = dict(
    colour=None, flag=False, words="", names=[], table={}, use_magic=False, magic_size=16, use_spell=None, spell=[3]
)  # fmt: skip


def test_unknown_fields_that_are_off_or_empty_pass_with_one_line(folder):
    edit(folder, **OFF)
    with pytest.warns(
        UserWarning, match="are ignored: colour, flag, magic_size, names, spell, table, use_magic,"
    ) as seen:
        model = PeftModel.from_pretrained(build("llama"), folder)
    about = [str(w.message) for w in seen if "colour" in str(w.message)]
    assert len(about) == 1 and "\n" not in about[0]
    assert torch.equal(logits(model.eval()), logits(adapted()))
    with pytest.warns(UserWarning, match="are ignored: colour"):
        model.load_adapter(folder, "second")
    assert isinstance(model.peft_config["second"], peft.LoraConfig)


def test_a_runtime_config_in_the_file_is_ignored(folder):
    edit(folder, runtime_config={"ephemeral_gpu_offload": True})
    model = PeftModel.from_pretrained(build("llama"), folder)
    assert model.peft_config["default"].runtime_config.ephemeral_gpu_offload is False


def test_a_config_that_is_given_takes_the_place_of_the_file(folder):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    (folder / CONFIG).unlink()
    model = PeftModel.from_pretrained(build("llama"), folder, config=config)
    assert model.peft_config["default"] is config and config.inference_mode
    assert torch.equal(logits(model.eval()), logits(adapted()))


@pytest.mark.parametrize(
    "field, value", [("lora_alpha", 9), ("use_rslora", True), ("use_dora", True), ("alpha_pattern", {"q_proj": 3})]
)
def test_values_for_an_adapter_with_another_scaling_are_refused(field, value, folder):
    model = adapted()
    before = state(model)
    edit(folder, **{field: value})
    with pytest.raises(
        ValueError, match=rf"{field}=.*has {field}=.*delete_adapter\('default'\) first, or load the file under"
    ):
        model.load_adapter(folder, "default")
    assert_untouched(model, before)


def test_values_of_another_method_are_refused(tmp_path):
    PeftModel(build("llama"), peft.LoHaConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="peft_type=LOHA, but the model's adapter 'default' has peft_type=LORA"):
        adapted().load_adapter(tmp_path, "default")


def test_loading_over_an_adapter_of_the_same_name_replaces_its_values(folder):
    other = adapted(seed=5)
    expected = logits(adapted())
    assert not torch.equal(logits(other), expected)
    result = other.load_adapter(folder, "default")
    assert torch.equal(logits(other), expected) and not result.missing_keys


def test_a_scratch_folder_does_not_outlive_loading(folder, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    open_files = len(os.listdir("/proc/self/fd"))
    model = PeftModel.from_pretrained(build("llama"), folder)
    cast(torch.int32)(folder)
    with pytest.raises(ValueError):
        model.load_adapter(folder, "second")
    assert not list((tmp_path / "temporary").iterdir()) and len(os.listdir("/proc/self/fd")) == open_files


def test_trainable_or_not(folder):
    model = PeftModel.from_pretrained(build("llama").train(), folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    model = PeftModel.from_pretrained(build("llama").train(), folder, is_trainable=True)
    assert {n.split(".lora_")[1][0] for n, p in model.named_parameters() if p.requires_grad} == {"A", "B"}


def test_files_by_the_names_of_compiled_or_distributed_models_load(folder):
    expected, tensors = logits(adapted()), load_file(folder / WEIGHTS)
    for rename in (
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace(".layers.0.", ".layers.0._orig_mod."),
        lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    ):
        save_file({rename(key): value for key, value in tensors.items()}, folder / WEIGHTS)
        model = PeftModel.from_pretrained(build("llama"), folder)
        model.load_adapter(folder, "default")
        model.load_adapter(folder, "second")
        assert torch.equal(logits(model.eval()), expected)
        model.set_adapter("second")
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("whole", [False, True], ids=["compiled blocks", "compiled model"])
def test_plain_files_load_on_compiled_models(folder, whole):
    base = build("llama")
    if not whole:
        for i in range(len(base.model.layers)):
            base.model.layers[i] = torch.compile(base.model.layers[i], backend="eager")
    model = PeftModel.from_pretrained(torch.compile(base, backend="eager") if whole else base, folder)
    model.load_adapter(folder, "default")
    model.load_adapter(folder, "second")
    found = dict(model.named_parameters())
    for key, value in load_file(folder / WEIGHTS).items():
        for adapter in ("default", "second"):
            own = next(n for n in found if n.replace("_orig_mod.", "").replace(f".{adapter}.", ".") == key)
            assert torch.equal(found[own], value)


def test_ignore_mismatched_sizes_works_as_in_peft(folder):
    rewrite(folder, lambda t: t.update({lora_A(t): torch.zeros(4, 64)}))
    shapes, missing = "found shape torch.Size..4, 64.. in the checkpoint", "Found missing adapter keys"
    with pytest.warns(UserWarning, match=missing), pytest.warns(UserWarning, match=shapes):
        model = PeftModel.from_pretrained(build("llama"), folder, ignore_mismatched_sizes=True)
    assert next(p for n, p in model.named_parameters() if "q_proj.lora_A" in n).shape == (4, 32)


def test_key_mapping_is_applied_before_names_are_compared(folder):
    expected = logits(adapted())
    rewrite(folder, lambda t: {k.replace(".self_attn.", ".attention."): v for k, v in t.items()})
    with pytest.raises(ValueError, match="has no base_model.*self_attn"):
        PeftModel.from_pretrained(build("llama"), folder)
    model = PeftModel.from_pretrained(build("llama"), folder, key_mapping={r"\.attention\.": ".self_attn."})
    assert torch.equal(logits(model.eval()), expected)


@pytest.mark.parametrize(
    "options", [dict(low_cpu_mem_usage=True), dict(autocast_adapter_dtype=False), dict(torch_device="cpu")]
)
def test_pefts_options_pass_through(options, folder):
    base = build("llama").to(torch.bfloat16)
    model = PeftModel.from_pretrained(base, folder, **options)
    theirs = peft.PeftModel.from_pretrained(build("llama").to(torch.bfloat16), folder, **options)
    for (name, mine), (_, expected) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        assert mine.dtype == expected.dtype and torch.equal(mine, expected), name


def test_a_subfolder(folder):
    model = adapted(adapter="second")
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(build("llama"), folder, subfolder="second")
    loaded.load_adapter(folder, "other", subfolder="second")
    assert torch.equal(logits(loaded.eval()), logits(model))


def cached(tmp_path, folder):
    """The cache of a hub that holds the adapter as me/adapter."""
    repo = tmp_path / "cache" / "models--me--adapter"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40) / "sub")
    return dict(cache_dir=str(tmp_path / "cache"), local_files_only=True, subfolder="sub")


def test_an_adapter_of_the_hub_is_checked_in_the_cache(folder, tmp_path):
    where = cached(tmp_path, folder)
    model = PeftModel.from_pretrained(build("llama"), "me/adapter", **where)
    model.load_adapter("me/adapter", "second", **where)
    assert torch.equal(logits(model.eval()), logits(adapted()))
    snapshot = next((tmp_path / "cache").rglob(WEIGHTS)).parent
    put(float("nan"))(snapshot)
    with pytest.raises(ValueError, match="NaN or infinite"):
        PeftModel.from_pretrained(build("llama"), "me/adapter", **where)
    for name in ("me/nothing", "me/adapter"):
        for error in (ValueError, FileNotFoundError):
            with pytest.raises(
                error, match="Can't find 'adapter_config.json' and .*neither the hub nor its cache has them"
            ):
                PeftModel.from_pretrained(build("llama"), name, **where | {"subfolder": "other"})


def test_json_that_python_reads_and_peft_accepts_still_loads(folder):
    values = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": "Modell größer 😀"}
    (folder / CONFIG).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    model = PeftModel.from_pretrained(build("llama"), folder)
    assert model.peft_config["default"].base_model_name_or_path == "Modell größer 😀"
