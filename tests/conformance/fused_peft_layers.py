"""A pytest plugin for PEFT's tests: names that they import from peft are those of this package; counts fused calls.

pytest loads the plugin by the name of this file, from this folder, because `tests` is a package of PEFT's checkout.
"""

import json
import os
from collections import Counter
from pathlib import Path

import peft

import pypeft_fast as pf
from pypeft_fast.model.layers import peft_ia3, peft_lora

CALLS = Counter()
OURS = [name for name in dir(peft) if name in pf._LATE]  # get_peft_model, PeftModel and its tasks, AutoPeftModel, ...


def counted(kind):
    attach = kind.attach

    def attach_and_count(layer):
        attach(layer)
        layer._fused_calls = CALLS  # one counter for all layers, which do not outlive their test

    kind.attach = attach_and_count


def pytest_configure():
    for kind in (peft_lora.FusedLinear, peft_ia3.FusedLinear):
        counted(kind)
    ours = {name: getattr(pf, name) for name in OURS}
    for name, value in ours.items():
        setattr(peft, name, value)


def pytest_sessionfinish():
    if "PYPEFT_FAST_CALLS" in os.environ:
        (Path(os.environ["PYPEFT_FAST_CALLS"]) / f"{os.getpid()}.json").write_text(json.dumps(CALLS))
