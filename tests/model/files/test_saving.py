"""Saving: interrupted at every step, with links in the folder, on a full disk; and the contents of the files."""

import errno
import json
import os
import stat

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pypeft_fast.model.files import saving
from pypeft_fast.model.files.saving import SCRATCH
from tests.model.files.made import CONFIG, WEIGHTS, PeftModel, adapted, build, edit, names_in
from tests.model.zoo import assert_same, logits

WHOLE = ["README.md", CONFIG, WEIGHTS]


@pytest.fixture
def folder(tmp_path):
    adapted().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def loaded(folder):
    return logits(PeftModel.from_pretrained(build("llama"), folder).eval())


class Crash(BaseException):
    """Like a kill, nothing handles this error, because it is no Exception."""


def crash_before(function, condition):
    def run(*args, **kwargs):
        if condition(args):
            raise Crash
        return function(*args, **kwargs)

    return run


def crash_at(monkeypatch, step):
    if step == "peft writes":
        monkeypatch.setattr(peft.LoraConfig, "save_pretrained", crash_before(None, lambda args: True))
    elif step == "sync":
        monkeypatch.setattr(saving, "sync", crash_before(saving.sync, lambda args: args[0].name == WEIGHTS))
    else:
        targets = {"rename weights": WEIGHTS, "rename config": CONFIG, "rename pending": ".new"}
        crash = crash_before(os.replace, lambda args: str(args[1]).endswith(targets[step]))
        monkeypatch.setattr(saving.os, "replace", crash)


@pytest.mark.parametrize("rank", [4, 6], ids=["same shapes", "another rank"])
@pytest.mark.parametrize("step", ["peft writes", "sync", "rename pending", "rename weights", "rename config"])
def test_an_interrupted_save_leaves_one_whole_adapter(step, rank, folder, monkeypatch):
    old, newer = loaded(folder), adapted(seed=8, r=rank, lora_alpha=5)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, step)
        newer.save_pretrained(folder)
    new = logits(newer)
    assert torch.equal(loaded(folder), new if step == "rename config" else old) and not torch.equal(old, new)
    newer.save_pretrained(folder)  # a later save ignores the files that are left
    assert torch.equal(loaded(folder), new) and names_in(folder) == WHOLE


def cut_off(monkeypatch, folder, model):
    """Starts a save that crashes between its two renames."""
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, "rename config")
        model.save_pretrained(folder)
    assert list(folder.glob(f"{CONFIG}.*.new"))


@pytest.mark.parametrize("again", [False, True], ids=["another adapter", "the same adapter"])
@pytest.mark.parametrize("step", ["sync", "rename pending", "rename weights", "rename config", "fail"])
def test_a_second_interruption_leaves_one_whole_adapter(step, again, folder, monkeypatch):
    first, second = adapted(seed=8, lora_alpha=5), adapted(seed=8 if again else 9, lora_alpha=5 if again else 6)
    cut_off(monkeypatch, folder, first)
    with monkeypatch.context() as patch, pytest.raises(OSError if step == "fail" else Crash):
        if step == "fail":
            real = os.replace
            patch.setattr(saving.os, "replace", lambda a, b: fail(errno.EACCES)(b) if b.name == WEIGHTS else real(a, b))
        else:
            crash_at(patch, step)
        second.save_pretrained(folder)
    assert torch.equal(loaded(folder), logits(second if step == "rename config" else first))
    second.save_pretrained(folder)
    assert torch.equal(loaded(folder), logits(second)) and names_in(folder) == WHOLE


def test_a_first_save_that_is_interrupted_leaves_an_adapter_or_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, "rename weights")
        adapted().save_pretrained(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        PeftModel.from_pretrained(build("llama"), tmp_path / "a")
    model = adapted()
    cut_off(monkeypatch, tmp_path / "b", model)
    assert not (tmp_path / "b" / CONFIG).exists() and torch.equal(loaded(tmp_path / "b"), logits(model))


def test_files_of_a_crashed_save_are_ignored_after_a_later_save_by_peft(folder, monkeypatch):
    cut_off(monkeypatch, folder, adapted(seed=8))
    theirs = adapted(library=peft.PeftModel, lora_alpha=12)
    theirs.save_pretrained(folder)
    found = PeftModel.from_pretrained(build("llama"), folder)
    assert found.peft_config["default"].lora_alpha == 12
    assert_same(logits(found), logits(theirs))
    found.save_pretrained(folder)
    assert names_in(folder) == WHOLE


def test_files_of_a_crashed_save_are_ignored_after_the_config_was_rewritten(folder, monkeypatch):
    cut_off(monkeypatch, folder, adapted(seed=8, lora_alpha=6))
    assert PeftModel.from_pretrained(build("llama"), folder).peft_config["default"].lora_alpha == 6
    edit(folder, lora_alpha=12)
    assert PeftModel.from_pretrained(build("llama"), folder).peft_config["default"].lora_alpha == 12


def fail(number):
    def run(*args, **kwargs):
        raise OSError(number, os.strerror(number), *map(str, args[:1]))

    return run


def test_a_full_disk_or_a_failed_rename_leaves_nothing_behind_and_names_the_folder(folder, monkeypatch):
    old, newer = loaded(folder), adapted(seed=8)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="adapter could not be saved.*No space") as found:
        patch.setattr(saving, "sync", fail(errno.ENOSPC))
        newer.save_pretrained(folder)
    assert str(folder) in str(found.value) and found.value.errno == errno.ENOSPC
    real = os.replace
    for name in (WEIGHTS, ".new"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(PermissionError, match="adapter could not be saved") as found,
        ):
            patch.setattr(
                saving.os,
                "replace",
                lambda a, b, name=name: fail(errno.EACCES)(b) if str(b).endswith(name) else real(a, b),
            )
            newer.save_pretrained(folder)
        assert str(folder) in str(found.value)
        assert names_in(folder) == WHOLE and torch.equal(loaded(folder), old)


def test_a_full_disk_while_peft_writes_names_the_folder(folder, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(peft.peft_model, "safe_save_file", full)
    with pytest.raises(OSError, match="adapter could not be saved: .*No space left") as found:
        adapted(seed=8).save_pretrained(folder)
    assert str(folder) in str(found.value) and names_in(folder) == WHOLE


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_the_place_of_a_file_is_an_error_and_the_old_files_are_kept(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=f"{name} is a folder where a file is to be written; remove it"):
        adapted().save_pretrained(tmp_path)
    assert names_in(tmp_path) == [name]


def test_a_file_in_the_place_of_the_folder_is_an_error_as_in_peft(tmp_path):
    (tmp_path / "file").write_text("")
    for error in (ValueError, NotADirectoryError):
        with pytest.raises(error, match="should be a directory, not a file"):
            adapted().save_pretrained(tmp_path / "file")


def test_no_planted_link_is_followed(tmp_path):
    folder, other = tmp_path / "adapter", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    for name in WHOLE:
        (other / name).write_text("precious")
        (folder / name).symlink_to(other / name)
    adapted().save_pretrained(folder)
    assert {(other / name).read_text() for name in WHOLE} == {"precious"}
    assert not any((folder / name).is_symlink() for name in WHOLE)
    assert "precious" not in (folder / "README.md").read_text()
    (folder / "second").symlink_to(other)
    with pytest.raises(ValueError, match="second is a symbolic link, which saving does not follow; remove it"):
        adapted(adapter="second").save_pretrained(folder)
    assert {(other / name).read_text() for name in WHOLE} == {"precious"}


def test_temporary_folders_of_killed_savers_are_removed_and_those_of_running_savers_are_kept(folder):
    dead, living = folder / f"{SCRATCH}dead", folder / f"{SCRATCH}living"
    for path in (dead, living):
        path.mkdir()
        (path / WEIGHTS).write_text("half")
    link = folder / f"{SCRATCH}link"
    link.symlink_to(living)
    with saving.locked(living) as is_held:
        adapted().save_pretrained(folder)
    assert is_held and names_in(folder) == sorted([link.name, living.name, *WHOLE])
    adapted().save_pretrained(folder)
    assert names_in(folder) == sorted([link.name, *WHOLE])


def test_saving_works_on_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", fail(errno.ENOTSUP))
    model = adapted()
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == WHOLE and torch.equal(loaded(tmp_path), logits(model))


def test_one_adapter_gives_one_file(folder):
    before = [(folder / name).read_bytes() for name in WHOLE]
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    for _ in range(3):
        adapted().save_pretrained(folder)
        assert [(folder / name).read_bytes() for name in WHOLE] == before


def test_sets_are_written_in_order(tmp_path):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    adapted(target_modules=names).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == sorted(names)


def test_patterns_keep_their_order_in_the_file(tmp_path):
    # PEFT sorts the patterns, and then cannot load its own file.
    options = dict(rank_pattern={"z|q_proj": 3, "q_proj": 2}, alpha_pattern={"self_attn.q_proj": 5, "q_proj": 1})
    model = adapted(**options)
    model.save_pretrained(tmp_path)
    order = list(json.loads((tmp_path / CONFIG).read_text())["alpha_pattern"])
    assert order == ["self_attn.q_proj", "q_proj"]
    for reader in (PeftModel, peft.PeftModel):
        assert_same(logits(reader.from_pretrained(build("llama"), tmp_path).eval()), logits(model))


def test_all_files_have_the_permissions_that_the_umask_gives(folder):
    (folder / "other").write_text("")
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in (CONFIG, WEIGHTS, "README.md", "other")}
    assert len(modes) == 1


def test_the_card_that_is_there_is_kept_up_to_date(folder):
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    adapted().save_pretrained(folder)
    assert "My own words." in card.read_text() and "library_name: peft" in card.read_text()


def test_several_adapters_each_have_a_folder(tmp_path):
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == [*WHOLE, "second"] and names_in(tmp_path / "second") == [CONFIG, WEIGHTS]
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert names_in(tmp_path / "one") == ["README.md", "second"]


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    adapted().save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert not (tmp_path / "adapter").exists()


def test_unsupported_save_options_are_errors_and_write_nothing(tmp_path):
    model = adapted()
    with pytest.raises(ValueError, match="safe_serialization=False would write a pickle"):
        model.save_pretrained(tmp_path / "a", safe_serialization=False)
    with pytest.raises(ValueError, match="the model has no adapter 'other'; it has default"):
        model.save_pretrained(tmp_path / "a", selected_adapters=["other"])
    with pytest.raises(ValueError, match="save_embedding_layers='always'; give True, False or 'auto'"):
        model.save_pretrained(tmp_path / "a", save_embedding_layers="always")
    assert not (tmp_path / "a").exists()


def compiled(model):
    for layers in (model.model.layers,):
        for i in range(len(layers)):
            layers[i] = torch.compile(layers[i])
    return model


def test_compiled_blocks_leave_no_trace_in_the_file(tmp_path):
    adapted().save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / WEIGHTS)
    model = adapted(base=compiled(build("llama")))
    model.load_adapter(tmp_path / "plain", "default")  # the names, which seed the random values, differ
    model.save_pretrained(tmp_path / "compiled")
    found = load_file(tmp_path / "compiled" / WEIGHTS)
    assert set(found) == set(plain) and all(torch.equal(found[k], plain[k]) for k in plain)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_of_a_wrapped_model_is_saved_under_the_names_of_the_model(prefix, tmp_path):
    model = adapted(modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path / "plain")
    state = {prefix + key: value for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "wrapped", state_dict=state)
    plain, wrapped = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "wrapped"))
    assert set(wrapped) == set(plain) and all(torch.equal(wrapped[k], plain[k]) for k in plain)


def test_float8_never_appears_in_a_file(tmp_path):
    model = adapted()
    state = model.state_dict()
    key = next(k for k in state if "q_proj.lora_A" in k)
    state[key] = state[key].to(torch.float8_e4m3fn)
    model.save_pretrained(tmp_path, state_dict=state)
    found = load_file(tmp_path / WEIGHTS)
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert torch.equal(found[key.replace(".default", "")], state[key].float())


def test_the_weights_are_not_read_back_when_nothing_has_to_be_changed(tmp_path, monkeypatch):
    from pypeft_fast.model.files import saving

    def never(*args, **kwargs):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(saving, "load_file", never)
    adapted().save_pretrained(tmp_path)
    read = []
    real = os.pread

    def counting(descriptor, size, offset):
        read.append(len(real(descriptor, size, offset)))
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    model = adapted(r=512)
    model.save_pretrained(tmp_path)
    assert sum(read) < (tmp_path / WEIGHTS).stat().st_size / 10


def test_two_saves_of_one_shape_have_other_pending_names(folder, tmp_path):
    from pypeft_fast.model.files.reading import pending_name

    names = set()
    for scale in (1.0, 2.0):
        tensors = {key: scale * value for key, value in load_file(folder / WEIGHTS).items()}
        save_file(tensors, tmp_path / "w")
        with open(tmp_path / "w", "rb") as file:
            names.update(pending_name(config, file.fileno()) for config in (None, b"{}", b"[]"))
    assert len(names) == 6


def test_an_adapter_that_changed_the_base_is_converted_as_by_peft(tmp_path):
    def trained(kind):
        torch.manual_seed(0)
        model = kind(build("llama"), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"))
        model.peft_config["default"].init_lora_weights = True  # as in the guide of PEFT, for the initial adapter
        model.save_pretrained(tmp_path / kind.__module__ / "initial")
        model.peft_config["default"].init_lora_weights = "pissa"
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1
        folder = tmp_path / kind.__module__ / "converted"
        initial = str(tmp_path / kind.__module__ / "initial")
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=initial)
        return load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())

    (ours, our_config), (theirs, their_config) = trained(PeftModel), trained(peft.PeftModel)
    assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert our_config == their_config and our_config["r"] == 8
