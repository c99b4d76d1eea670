"""`pypeft-fast plan`: the table, the JSON, what fits, and mistakes."""

import json
import shutil

import pytest

from tests.cli.test_bad_input import mistake
from tests.real_weights import needs_smollm2

ONE = ["--method", "lora", "--targets", "q,v", "--base", "dense", "--rank", 4, "--batch-size", 2, "--max-length", 16]


@pytest.fixture
def plan(command, tiny_model):
    def run(*options, model=tiny_model):
        return command("plan", "--model", model, *options)

    return run


def test_every_candidate_has_a_row_with_pefts_count(plan, tiny_model, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    options = ["--rank", "2,4", "--batch-size", 2, "--max-length", 16, "--no-probe", "--json", tmp_path / "plan.json"]
    code, out, err = plan("--cpu", "4GiB", *options)
    assert code == 0, err
    rows = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    assert {(r["method"], r["base"]) for r in rows} == {
        ("lora", "dense"), ("lora", "nf4"), ("lora", "int8"), ("dora", "dense"), ("dora", "nf4"), ("ia3", "dense"),
        ("ia3", "nf4"), ("ia3", "int8"),
    }  # fmt: skip
    assert len(rows) == 3 * 4 * 2 + 2 * 4 * 2 + 3 * 4
    for row in rows:
        assert f"{row['trained_parameters']:,}" in out and row["fits"] == "yes" and row["seconds"] is None
        parts = {name: size for name, size in row["memory"].items() if name != "peak"}
        assert (
            sum(parts.values()) == row["memory"]["peak"] >= row["memory_with_checkpointing"]["peak"] - parts["loading"]
        )
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    (its,) = [r for r in rows if (r["method"], r["targets"], r["rank"], r["base"]) == ("lora", "q,v", 4, "dense")]
    assert its["trained_parameters"] == model.get_nb_trainable_parameters()[0]
    assert its["target_modules"] == ["q_proj", "v_proj"]


def test_a_block_is_timed_for_the_cpu(plan, tmp_path):
    code, _, err = plan("--cpu", *ONE, "--json", tmp_path / "plan.json")
    assert code == 0, err
    (row,) = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    assert 0 < row["seconds"] < row["seconds_with_checkpointing"] < 60


def test_what_fits_a_gpu(plan, tmp_path):
    long = [*ONE[:-4], "--batch-size", 64, "--max-length", 256]
    code, out, err = plan("--gpu", "1MB", *long, "--json", tmp_path / "plan.json")
    assert code == 0, err
    (row,) = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    peaks = row["memory"]["peak"], row["memory_with_checkpointing"]["peak"]
    assert row["fits"] == "no" and peaks[0] > peaks[1] > 1e6
    between = f"{sum(peaks) // 2}B"
    assert plan("--gpu", between, *long, "--json", tmp_path / "plan.json")[0] == 0
    assert json.loads((tmp_path / "plan.json").read_text())["candidates"][0]["fits"] == "checkpointed"


def test_a_config_is_enough_and_an_encoder_works(plan, tmp_path):
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ["--cpu", "--no-probe", "--base", "dense", "--rank", 4, "--max-length", 16]
    code, out, err = plan(*options, "--json", tmp_path / "plan.json", model=tmp_path)
    assert code == 0, err
    rows = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    assert {row["targets"] for row in rows} == {"q,v", "attention", "mlp", "all-linear"}
    of_mlp = next(row for row in rows if (row["method"], row["targets"]) == ("lora", "mlp"))
    assert of_mlp["trained_parameters"] == 2 * 2 * 4 * (32 + 64)  # two blocks, two layers, r (K + N)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_line_says_that_loading_decides(plan, tmp_path, dtype):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64000, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    code, out, err = plan("--cpu", "--no-probe", *ONE, "--dtype", dtype, model=tmp_path)
    assert code == 0, err
    assert ("loading decides 2 of 2 peaks" in out) == (dtype == "bfloat16"), out


def test_mistakes(plan, tiny_model, tmp_path):
    mistake(plan(model=tmp_path / "none"), "--model", "no such folder")
    mistake(plan(model=tmp_path), "no config.json")
    mistake(plan("--gpu", "24 bananas"), "argument --gpu: 24 bananas: a size is a number with a unit")
    mistake(plan("--gpu", "24GiB", "--cpu"), "not allowed with")
    mistake(plan("--rank", 0), "argument --rank: 0 is not a whole number above 0")
    mistake(plan("--rank", "4,"), "argument --rank")
    mistake(plan("--targets", "q"), "argument --targets", "all-linear")
    mistake(plan("--json", tmp_path / "none" / "plan.json"), "--json", "there is no such folder")
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "magic"}')
    mistake(plan(model=broken), "has a config that cannot be read")
    (broken / "config.json").write_text('{"model_type": "t5"}')
    mistake(plan(model=broken), "type t5", "give a decoder such as a Llama, or an encoder such as a BERT")


@needs_smollm2
def test_smollm2(plan, tmp_path):
    options = ["--method", "lora", "--rank", "16", "--base", "dense", "--no-probe", "--cpu", "1GiB"]
    code, out, err = plan(*options, "--json", tmp_path / "plan.json", model="smollm2")
    assert code == 0, err
    assert "134,515,008 parameters in 30 blocks" in out and "tied weights" in out
    rows = {row["targets"]: row for row in json.loads((tmp_path / "plan.json").read_text())["candidates"]}
    assert rows["all-linear"]["trained_parameters"] == 4_884_480
    assert rows["q,v"]["fits"] == "no"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rank", 10**12], "--rank 1000000000000 is more than the widest layer of this model has"),
        (
            ["--rank", 4, "--max-length", 10**15],
            "can be simulated; give fewer tokens by --batch-size or --max-length: ",
        ),
    ],
)
def test_numbers_that_no_memory_holds(plan, options, says):
    code, _, err = plan("--method", "lora", "--base", "dense", "--no-probe", *options)
    assert code == 2 and says in err.splitlines()[-1] and "Traceback" not in err


def test_experts_need_a_dtype_that_their_product_takes(plan, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, vocab_size=99)).save_pretrained(tmp_path / "experts")
    options = ["--cpu", "4GiB", "--no-probe", *ONE]
    code, _, err = plan(*options, model=tmp_path / "experts")
    last = err.splitlines()[-1]
    assert code == 2 and "no step of the model in float32 can be simulated; try --dtype bfloat16: " in last
    code, out, err = plan(*options, "--dtype", "bfloat16", model=tmp_path / "experts")
    assert code == 0 and "timing" not in err, err
