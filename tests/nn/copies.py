"""The ways to copy a whole module, and the check that a merged layer is saved as an unmerged one."""

import copy
import io
import pickle

import torch


def _through_a_file(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _through_a_file}


def assert_saved_as_unmerged(module, other, names):
    """The state dict of `module` has `names` and is not changed by merge; `other`, merged, loads it unmerged."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    assert set(before) == names
    module.merge()
    after = module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    other.merge()
    other.load_state_dict(after)
    x = torch.randn(3, 24)
    assert not other.merged
    module.unmerge()
    assert torch.equal(other(x), module(x))
