"""A pytest plugin: PEFT's LoRA and IA3 layers are born fused, and their calls counted.

It is loaded by its own name, from its folder: in PEFT's checkout `tests` is PEFT's.
"""

import functools
import json
import os
from collections import Counter
from pathlib import Path

from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.lora.layer import Linear as LoraLinear

from pypeft_fast.model import fused_ia3, fused_lora

CALLS = Counter()


def born_fused(cls, kind):
    constructor = cls.__init__

    @functools.wraps(constructor)
    def construct(self, *args, **kwargs):
        constructor(self, *args, **kwargs)
        if type(self) is cls and kind.why_not_layer(self) is None:
            kind.attach(self)
            self._fused_calls = CALLS  # one counter for all, since layers do not outlive their test

    cls.__init__ = construct


def pytest_configure():
    born_fused(LoraLinear, fused_lora)
    born_fused(IA3Linear, fused_ia3)


def pytest_sessionfinish():
    if "PYPEFT_FAST_CALLS" in os.environ:
        (Path(os.environ["PYPEFT_FAST_CALLS"]) / f"{os.getpid()}.json").write_text(json.dumps(CALLS))
