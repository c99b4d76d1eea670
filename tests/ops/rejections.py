"""Bad arguments: each op's test lists them, and every kernel must refuse them with the same words, eager and traced."""

import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, sample

CASE = Case(6, 20, 10, 3, 0.3)


def assert_rejects(op_name, index, value, error, words):
    """The sample arguments with args[index] replaced are an error whose message has these words."""
    args = list(sample(op_name, CASE))
    args[index] = value(args[index]) if callable(value) else value
    for kernel in available(OPS[op_name]):
        for grad in (True, False):  # without, an op of one call asks its C++ kernel first
            with using(kernel), torch.set_grad_enabled(grad), pytest.raises(error, match=words):
                OPS[op_name](*args)
    with torch._subclasses.FakeTensorMode() as mode:  # where torch.compile traces, and no kernel runs
        fakes = [_fake(mode, a) for a in args]
        with pytest.raises(error, match=words):
            OPS[op_name](*fakes)


def _fake(mode, value):
    if isinstance(value, list):
        return [_fake(mode, one) for one in value]
    return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
