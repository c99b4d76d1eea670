"""The steps, the most valuable first, each with its time limit and its requirements."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float  # the step is stopped after this many seconds, or when the total time is over
    about: str
    module: str  # the module to run with `python -m`
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # packages without which the step is skipped
    alone: bool = False  # the step times the GPU, so no other step runs at the same time
    beside: bool = False  # the next steps, up to a step with `alone`, do not wait for this step
    essential: bool = False  # if the step fails, no later step can run

    def why_not(self):
        """The packages that this Python lacks, in words, or None."""
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"this Python lacks {' and '.join(missing)}" if missing else None


def _own(name, seconds, about, **options):
    return Step(name, seconds, about, f"bench.gpu_hour.steps.{name}", **options)


def _tests(name, seconds, about, *paths, needs=()):
    needs = ("pytest", *needs)
    return Step(f"tests-{name}", seconds, about, "bench.gpu_hour.steps.tests", paths, needs)


STEPS = (
    _own("versions", 60, "versions, nvidia-smi, the available kernels", essential=True),
    _own("libraries", 170, "the existing libraries, else csrc/ built for this GPU"),
    _own("kernels", 110, "every kernel of every op against float64"),
    _tests("gpu", 100, "tests/gpu: sizes, tiles, capture, torch.compile", "tests/gpu"),
    _tests("layers", 60, "tests/autograd and tests/nn", "tests/autograd", "tests/nn"),
    _tests("fuse", 45, "pf.fuse", "tests/model/test_fuse.py", needs=("peft", "transformers")),
    _own("sanitize", 70, "compute-sanitizer: memcheck and racecheck of each CUDA kernel", beside=True),
    _own("candidates", 60, "every tuning candidate compiled, in parallel"),
    _own("tune", 60, "every tuning candidate timed, then the ops by the winners", alone=True),
    _own("layer", 120, "the layer, compared with frozen, PEFT, addmm", alone=True),
    _own("decode", 30, "decoding in CUDA graphs and without, 1, 8 and 16 rows", alone=True),
    _own("llama", 45, "four layers of an 8-billion Llama: frozen, PEFT, fused", needs=("transformers", "peft"),
         alone=True),
    _own("ncu", 45, "Nsight Compute of lora_shrink, lora_linear and decoding", alone=True),
    _own("cache", 20, "the tuning cache as one file"),
)  # fmt: skip
