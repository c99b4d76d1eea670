"""What publications found about the choice of target_modules, with the size of each study, and where they disagree."""

from dataclasses import dataclass

ALL, EQUAL = "MLP or all-linear", "no clear difference"


@dataclass(frozen=True)
class Finding:
    """One publication. key: its name here. brief: the result in a few words. claim: the result. sample: the models, the
    data and the number of runs. verdict: which adapters the study found better, of those on attention alone and
    those on the MLP layers or all linear layers of a transformer; None if it compared something else."""

    key: str
    authors: str
    title: str
    year: int
    url: str
    brief: str
    claim: str
    sample: str
    verdict: str | None = None


@dataclass(frozen=True)
class Conflict:
    """A disagreement between the findings with the keys `one` and those with the keys `other`."""

    one: tuple[str, ...]
    other: tuple[str, ...]
    text: str


FINDINGS = (
    Finding(
        "hu",
        "Hu et al.",
        "LoRA: Low-Rank Adaptation of Large Language Models, section 7.1",
        2021,
        "https://arxiv.org/abs/2106.09685",
        "q,v as good as all of attention; MLP not tried",
        "At the same number of trained parameters, adapters on two or four attention matrices are better than one "
        "adapter of a higher rank. Accuracy on WikiSQL and MultiNLI: q alone at rank 8 has 70.4 and 91.0, q and v at "
        "rank 4 have 73.7 and 91.3, q, k, v and o at rank 2 have 73.7 and 91.7. The MLP layers had no adapters.",
        "GPT-3 175B, 18 million trained parameters, 2 data sets; standard deviations over seeds 0.5 and 0.1",
    ),
    Finding(
        "dettmers",
        "Dettmers et al.",
        "QLoRA: Efficient Finetuning of Quantized LLMs, section 4",
        2023,
        "https://arxiv.org/abs/2305.14314",
        "all-linear reaches full fine-tuning; q,v does not",
        "LoRA on q and v does not reach full fine-tuning. LoRA on all linear layers of the blocks does, and then the "
        "rank does not matter.",
        "for this comparison LLaMA 7B on Alpaca",
        ALL,
    ),
    Finding(
        "biderman",
        "Biderman et al.",
        "LoRA Learns Less and Forgets Less, TMLR, figure 7",
        2024,
        "https://arxiv.org/abs/2405.09673",
        "attention is worse than MLP and all-linear",
        "Attention alone has a lower HumanEval score than MLP alone and than both together; the MLP layers bring most "
        "of the gain. At usual ranks LoRA learns less than full fine-tuning, and forgets less.",
        "for this comparison Llama-2-7B, 4 epochs of Magicoder-Evol-Instruct, ranks 16, 64 and 256",
        ALL,
    ),
    Finding(
        "schulman",
        "Schulman et al.",
        "LoRA Without Regret, Thinking Machines Lab",
        2025,
        "https://thinkingmachines.ai/blog/lora/",
        "attention is worse than MLP at equal size",
        "Attention at rank 256 (0.25 billion parameters) is worse than MLP at rank 128 (0.24 billion). Attention "
        "adapters beside MLP adapters improve nothing. The authors recommend all linear layers.",
        "Llama-3.1-8B, and the mixture of experts Qwen3-30B-A3B-Base",
        ALL,
    ),
    Finding(
        "peft",
        "Hugging Face PEFT",
        "method_comparison/MetaMathQA, results of July 2026",
        2026,
        "https://github.com/huggingface/peft/tree/5d602fdbff04c33c1c4de55cda9d4ae1d7cb7e40/method_comparison/MetaMathQA",
        "MLP 49.4 %, q,v 47.8 %, q,v with rsLoRA 51.3 %",
        "GSM8K accuracy after 5,000 steps: MLP at rank 10 (9.5 million parameters) 49.4 %, q and v at rank 32 (9.2 "
        "million) 47.8 %; q and v at rank 64 47.4 %, with the scaling of rsLoRA 51.3 %; full fine-tuning 47.2 %. The "
        "table has no run of all-linear LoRA.",
        "Llama-3.2-3B, 1,319 questions, one seed; the standard error of a difference of two accuracies is 1.9 points",
        EQUAL,
    ),
    Finding(
        "sumit",
        "sumitdotml",
        "Is Attention Enough? A LoRA Target-Module Study on Qwen3-8B Math SFT",
        2026,
        "https://site-c66.pages.dev/research/lora-and-friends/",
        "attention and all-linear are equal",
        "Mean GSM8K accuracy is 90.55 % with attention alone and 90.09 % with all linear layers. The author had fixed "
        "one point as the smallest difference that would name a winner.",
        "Qwen3-8B, rank 8, mathematics, 3 seeds of each",
        EQUAL,
    ),
    Finding(
        "borobia",
        "Borobia et al.",
        "Where Should LoRA Go? Component-Type Placement in Hybrid Language Models",
        2026,
        "https://arxiv.org/abs/2604.22127",
        "in hybrid models attention is better than all",
        "In models with attention and recurrent layers, adapters on the attention layers alone are better than "
        "adapters on everything, with 5 to 10 times fewer parameters. Adapters on the recurrent layers cost 14.8 "
        "points of GSM8K accuracy where both kinds of layers follow each other, and gain 8.6 points where they run in "
        "parallel.",
        "Qwen3.5-0.8B and Falcon-H1-0.5B, 3 training sets, 5 benchmarks",
    ),
    Finding(
        "zhang",
        "Zhang et al.",
        "Rethinking Adapter Placement: A Dominant Adaptation Module Perspective",
        2026,
        "https://arxiv.org/abs/2605.06183",
        "gradient energy finds the best place",
        "The initial gradient energy of LoRA adapters is concentrated on one down projection of an early block. One "
        "adapter there, with 0.7 % of the parameters, is on average better than LoRA on all layers.",
        "2 families of models, 4 tasks",
    ),
    Finding(
        "sehanobish",
        "Sehanobish and Lovering",
        "Not How Many, But Which: Parameter Placement in Low-Rank Adaptation",
        2026,
        "https://arxiv.org/abs/2605.12207",
        "gradients do not help in supervised fine-tuning",
        "In supervised fine-tuning, entries of B that are chosen at random do as well as entries chosen by their "
        "gradients. In reinforcement learning (GRPO) only the chosen entries learn; most are in v, o and down.",
        "models of 1.5 to 8 billion parameters; the trained entries are a part of B, and A is frozen",
    ),
    Finding(
        "hayou",
        "Hayou et al.",
        "PLoP: Precise LoRA Placement for Efficient Finetuning of Large Models",
        2025,
        "https://arxiv.org/abs/2506.20629",
        "the best modules depend on model and task",
        "The authors call earlier work on placement inconclusive. Module types that are chosen for a model and a task "
        "are at least as good as the usual choices.",
        "supervised fine-tuning, and reinforcement learning for reasoning",
    ),
)

CONFLICTS = (
    Conflict(
        ("hu",),
        ("dettmers", "biderman", "schulman"),
        "Hu et al. found q and v enough, with the budget fixed and without MLP adapters in the comparison. The three "
        "later studies compared with MLP adapters, and found attention alone worse.",
    ),
    Conflict(
        ("biderman", "schulman"),
        ("sumit", "peft"),
        "Biderman et al. and Schulman et al. found MLP adapters clearly better. On grade-school mathematics the "
        "difference is within noise in the study of sumitdotml and in PEFT's table, where the scaling of the update "
        "changes the accuracy more than the modules do.",
    ),
    Conflict(
        ("dettmers", "schulman"),
        ("borobia",),
        "For transformers all linear layers are the recommendation. For hybrids with recurrent layers attention alone "
        "is better; this is known of two models below one billion parameters.",
    ),
    Conflict(
        ("zhang",),
        ("sehanobish",),
        "Zhang et al. place an adapter by its gradient energy and gain accuracy. Sehanobish and Lovering find that in "
        "supervised fine-tuning a choice by gradients is no better than a random choice.",
    ),
)


def against(key: str) -> list[str]:
    """The keys of the findings that disagree with this one."""
    found = [c.other if key in c.one else c.one for c in CONFLICTS if key in c.one + c.other]
    return list(dict.fromkeys(other for keys in found for other in keys))
