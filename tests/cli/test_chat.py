"""`pypeft-fast chat` on a tiny Llama with two adapters: every answer equals that of PEFT with the same files."""

import builtins

import pytest
import torch

LENGTH = 8


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_model):
    """Two random adapters written by PEFT: {name: folder}."""
    import peft
    from transformers import AutoModelForCausalLM

    folders = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def expected(tiny_model, adapters, tokenizer):
    """expected(name of an adapter or None, text): the greedy answer of PEFT."""
    import peft
    from transformers import AutoModelForCausalLM

    def answer(name, text):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        if name:
            model = peft.PeftModel.from_pretrained(model, adapters[name])
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = tokenizer(prompt, return_tensors="pt")
        tokens = model.eval().generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


@pytest.fixture
def chat(command, tiny_model):
    return lambda *options: command("chat", "--model", tiny_model, "--max-new-tokens", LENGTH, *options)


def test_one_question_to_the_base_model_and_to_an_adapter(chat, adapters, expected):
    assert chat("--prompt", "hello")[:2] == (0, expected(None, "hello") + "\n")
    assert chat("--prompt", "hello", "--adapter", adapters["second"])[:2] == (0, expected("second", "hello") + "\n")
    assert expected(None, "hello") != expected("second", "hello")


def test_one_question_to_two_adapters(chat, adapters, expected):
    both = [a for name, path in adapters.items() for a in ("--adapter", f"{name}={path}")]
    code, out, _ = chat("--prompt", "what is blue", *both)
    answers = {name: expected(name, "what is blue") for name in adapters}
    assert code == 0 and len(set(answers.values())) == 2
    assert out == "".join(f"[{name}]\n{answer}\n" for name, answer in answers.items())


@pytest.fixture
def typing(monkeypatch):
    """typing(lines...): input() then returns these lines, and prints each prompt."""

    def typed(*lines):
        waiting = iter(lines)
        monkeypatch.setattr(builtins, "input", lambda prompt: print(prompt, end="\n") or next(waiting))
        return waiting

    return typed


def test_a_conversation_that_switches(chat, adapters, expected, typing):
    waiting = typing("hello", "/base", "hello", "/adapter b", "hello", "/adapter c", "/nope", "", "/help", "/quit")
    code, out, _ = chat("--adapter", f"a={adapters['first']}", "--adapter", f"b={adapters['second']}")
    assert code == 0 and next(waiting, None) is None
    said = [f"a> \n{expected('first', 'hello')}\n", "the base model answers now, and the conversation begins anew"]
    said += [f"base> \n{expected(None, 'hello')}\n", "b answers now", f"b> \n{expected('second', 'hello')}\n"]
    said += ["no adapter 'c'; there are: a, b", "/nope is not a command", "/adapter NAME ", "/clear ", "/quit "]
    places = [out.find(text) for text in said]
    assert -1 not in places and places == sorted(places)


def test_only_a_switch_begins_anew(chat, adapters, typing, monkeypatch):
    from pypeft_fast.finetune.chat import Chat

    seen = []
    monkeypatch.setattr(Chat, "answer", lambda self, messages, streamer, **g: seen.append(len(messages)) or "yes")
    typing("1", "2", "/adapter a", "3", "/adapter nope", "4", "/base", "5", "/base", "6", "/quit")
    assert chat("--adapter", f"a={adapters['first']}")[0] == 0
    assert seen == [1, 3, 5, 7, 1, 3]


def test_a_conversation_is_remembered_and_ends_with_the_input(chat, tiny_model, tokenizer, monkeypatch):
    from pypeft_fast.finetune.chat import Chat

    seen = []
    monkeypatch.setattr(Chat, "answer", lambda self, messages, streamer, **g: seen.append(list(messages)) or "yes")
    waiting = iter(["hello", "why"])

    def ask(prompt):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", ask)
    assert chat("--system", "Be brief.")[0] == 0
    assert [m["content"] for m in seen[-1]] == ["Be brief.", "hello", "yes", "why"]


def test_sampling_follows_the_seed(chat):
    def sampled(*options):
        return chat("--prompt", "hello", "--temperature", 1.5, *options)[1]

    assert sampled("--seed", 1) == sampled("--seed", 1) != sampled("--seed", 2)
    assert sampled("--seed", 1, "--top-k", 1) == chat("--prompt", "hello")[1] != sampled("--seed", 1)
