"""Bad arguments, listed in the test of each op. Every kernel must refuse them with the same message, also in traces."""

import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, sample

CASE = Case(6, 20, 10, 3, 0.3)


def assert_rejects(op_name, index, value, error, words):
    """Calls the op with sample arguments, args[index] replaced; expects `error` with these words in its message."""
    args = list(sample(op_name, CASE))
    args[index] = value(args[index]) if callable(value) else value
    for kernel in available(OPS[op_name]):
        for grad in (True, False):  # without gradients a composite op calls its C++ kernel first
            with using(kernel), torch.set_grad_enabled(grad), pytest.raises(error, match=words):
                OPS[op_name](*args)
    with torch._subclasses.FakeTensorMode() as mode:  # torch.compile traces with fake tensors, and no kernel runs
        fakes = [_fake(mode, a) for a in args]
        with pytest.raises(error, match=words):
            OPS[op_name](*fakes)


def _fake(mode, value):
    if isinstance(value, list):
        return [_fake(mode, one) for one in value]
    return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
