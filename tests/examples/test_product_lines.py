"""Three adapters on one base, end to end: each answers for its product line, alone and in a mixed batch."""

import importlib.util
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parents[2] / "examples" / "product_lines.py"


@pytest.fixture(scope="module")
def product_lines():
    spec = importlib.util.spec_from_file_location("product_lines", HERE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("without_announcements")
def test_end_to_end(product_lines, tiny_model, tmp_path, capsys):
    product_lines.main(["--model", str(tiny_model), "--output", str(tmp_path), "--steps", "60"])
    text = capsys.readouterr().out
    switched, mixed = (part.splitlines() for part in text.split("The same in one batch"))
    alone = dict(line.split(maxsplit=1) for line in switched[2:])
    together = {line.split()[0]: line for line in mixed[1:]}
    assert list(together) == [*product_lines.LINES, "__base__"]
    for name, dialogues in product_lines.LINES.items():
        assert len(set(alone.values())) == 3  # the answers of the adapters differ
        assert alone[name] in together[name]
        files = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / name)
        assert any(p.abs().max() > 0 for key, p in files.named_parameters() if "lora_B" in key)
        assert dialogues.keys() == product_lines.LINES["router"].keys()  # the same questions for all product lines


def test_training_one_adapter_leaves_the_others_and_the_base(product_lines, tiny_model):
    from transformers import AutoTokenizer

    import pypeft_fast as pf

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = pf.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = pf.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config, adapter_name="router")
    model.add_adapter("camera", config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    product_lines.train(model, tokenizer, "camera", 2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(".camera." in name for name in changed)
