"""Which modules a config means: the same as in PEFT; what cannot be adapted is refused with its reason."""

import copy
import random
import warnings

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer as PeftLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.linear_layer import AdaptedLayer as LoraLayer
from pypeft_fast.model.lora import DEFAULT_TARGETS
from tests.model.zoo import build, plain

MISMATCH = [
    (
        dict(target_modules=["query"]),
        ValueError,
        "matches no module of LlamaForCausalLM; its linear layers are named down_",
    ),
    (dict(target_modules=r"q_proj"), ValueError, "matches no module"),  # a regular expression matches whole names
    (dict(target_modules=["embed_tokens"]), ValueError, "matches model.embed_tokens, a Embedding; supported are"),
    (dict(target_modules=["q_proj"], layers_to_transform=[9]), ValueError, r"in layers_to_transform=\[9\]"),
    (dict(target_modules=["q_proj"], exclude_modules=["q_proj"]), ValueError, "leave nothing of what"),
    (dict(target_modules=["q_proj"], modules_to_save=["score"]), ValueError, r"modules_to_save=\['score'\] matches no"),
    (dict(target_modules=["q_proj"], r=3, init_lora_weights="orthogonal"), ValueError, "needs an even rank, got r=3"),
    (
        dict(target_modules=["q_proj"], r=64, init_lora_weights="pissa"),
        ValueError,
        "needs a rank of at most 32, got r=64",
    ),
    # "ead" is no name that keeps lm_head from being a target, but it is the end of it.
    (
        dict(target_modules=["q_proj", "lm_head"], modules_to_save=["ead"]),
        ValueError,
        "matches lm_head, but lm_head is",
    ),
    (dict(target_modules=["up_proj"], modules_to_save=["lp"]), ValueError, "but model.layers.0.mlp.up_proj is adapted"),
]


@pytest.mark.parametrize("options,error,words", MISMATCH)
def test_a_config_that_does_not_fit_leaves_the_model_alone(options, error, words):
    model = build("llama")
    before = [(n, type(m)) for n, m in model.named_modules()]
    with pytest.raises(error, match=words):
        pf.get_peft_model(model, pf.LoraConfig(**options))
    assert [(n, type(m)) for n, m in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_no_default_targets_for_an_unknown_architecture():
    with pytest.raises(ValueError, match="target_modules=None: there is no default for the model type None"):
        pf.get_peft_model(nn.Sequential(nn.Linear(2, 2)), pf.LoraConfig())


def test_default_targets_are_pefts():
    assert DEFAULT_TARGETS == PEFT_TARGETS


NAMES = {
    "llama": ["q_proj", "k_proj", "down_proj", "lm_head", "self_attn.q_proj", "model.layers.0.mlp.up_proj"],
    "gpt2": ["c_attn", "c_proj", "attn.c_proj", "lm_head", "h.1.attn.c_attn"],
    "bert": ["query", "dense", "attention.output.dense", "classifier", "pooler.dense"],
    "t5": ["q", "v", "o", "wi", "SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.o"],
}
REGULAR = {
    "llama": [r".*\.(q|v)_proj", r"model\.layers\.[01]\.mlp\..*proj"],
    "gpt2": [r".*c_attn", r".*\.h\.1\..*(c_proj|c_fc)"],
    "bert": [r".*layer\.1.*(query|dense)"],
    "t5": [r"decoder.*\.(q|v)"],
}
SAVED = {"llama": ["lm_head", "norm"], "gpt2": ["ln_f"], "bert": ["classifier", "pooler"], "t5": ["final_layer_norm"]}


def random_config(kind, draw):
    names, regular = NAMES[kind], REGULAR[kind]
    keys = [*names, r"0\..*", r"(q|v)_proj", r"^q_proj", r"query|key", r".*\.1\..*"]
    chosen = dict(
        r=draw.randint(1, 5),
        bias=draw.choice(["none", "all", "lora_only"]),
        use_rslora=draw.random() < 0.3,
        target_modules=draw.choice(["all-linear", None, *regular, *[draw.sample(names, 2) for _ in range(5)]]),
        exclude_modules=draw.choice([None, None, [], draw.sample(names, 1), regular[0]]),
        rank_pattern={draw.choice(keys): draw.randint(1, 6) for _ in range(draw.randint(0, 3))},
        alpha_pattern={draw.choice(keys): draw.randint(1, 9) for _ in range(draw.randint(0, 3))},
        modules_to_save=draw.choice([None, None, draw.sample(SAVED[kind], 1)]),
    )
    if not isinstance(chosen["target_modules"], str) and draw.random() < 0.5:
        chosen["layers_to_transform"] = draw.choice([0, 1, [0], [0, 1], [], [7]])
        patterns = [None, [], "h", ["layers", "layer"], ["layers", "h"], r"model\.layers", "encoder.layer", "block"]
        chosen["layers_pattern"] = draw.choice(patterns)
    return chosen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(NAMES))
def test_random_configs_mean_the_same_as_in_peft(kind):
    draw = random.Random(kind)
    adapted = refused = 0
    for _ in range(40):
        options, found = random_config(kind, draw), []
        for library, layer in ((pf, LoraLayer), (peft, PeftLayer)):
            try:
                model = library.get_peft_model(build(kind), library.LoraConfig(**copy.deepcopy(options)))
            except ValueError:
                found.append("refused")
                continue
            layers = {n: m for n, m in model.named_modules() if isinstance(m, layer)}
            scales = {n: (m.r["default"], round(m.scaling["default"], 9)) for n, m in layers.items()}
            trained = {plain(n): p.shape for n, p in model.named_parameters() if p.requires_grad}
            found.append((scales, trained))
        assert found[0] == found[1], options
        adapted, refused = adapted + (found[0] != "refused"), refused + (found[0] == "refused")
    assert adapted >= 20 and refused >= 2


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replaced_forward():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


UNFIT = {
    "its own forward": (lambda: Doubled(4, 4), "1, a Doubled with a forward of its own"),
    "a replaced forward": (replaced_forward, "1, a Linear with a forward of its own"),
    "a computed weight": (
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "1, a ParametrizedLinear whose weight is quantised or computed",
    ),
    "attention": (lambda: nn.MultiheadAttention(4, 2), r"1.out_proj, .* nn.MultiheadAttention does not call"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_layer_that_computes_something_else_is_refused(what):
    make, words = UNFIT[what]
    model = nn.Sequential(nn.Linear(4, 4), make())
    with pytest.raises(ValueError, match=words):
        pf.get_peft_model(model, pf.LoraConfig(target_modules="all-linear"))
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad
    pf.get_peft_model(model, pf.LoraConfig(target_modules="all-linear", exclude_modules=r"1.*"))  # the remedy


@pytest.mark.parametrize("spoil,error", [("double", TypeError), ("nan", ValueError)])
def test_an_initialisation_that_would_fail_halfway_fails_before(spoil, error):
    model = build("llama")
    if spoil == "double":
        model.double()
    else:
        model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = float("nan")
    first = model.model.layers[0].self_attn.q_proj.weight
    before = first.detach().clone()
    with pytest.raises(error, match="init_lora_weights='pissa' needs a"):
        pf.get_peft_model(model, pf.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))
    assert torch.equal(first, before) and first.requires_grad
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


def test_patterns_without_effect_are_mentioned():
    for options, words in (
        (dict(rank_pattern={"q_proj": 2, "typo": 3}), "rank_pattern: typo match no adapted layer"),
        (dict(alpha_pattern={"k_proj": 3}), "alpha_pattern: k_proj match no adapted layer"),
        (dict(exclude_modules=["typo"]), r"exclude_modules={'typo'} leaves nothing out"),
    ):
        with pytest.warns(UserWarning, match=words):
            pf.get_peft_model(build("llama"), pf.LoraConfig(target_modules=["q_proj"], **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = dict(rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 2}, exclude_modules=r".*\.1\..*")
        pf.get_peft_model(build("llama"), pf.LoraConfig(target_modules=["q_proj"], **options))
