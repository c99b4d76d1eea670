"""What MultiLoRALinear.add, replace and load_state_dict refuse, before any matrix of the bank changes."""

import copy
import json

import pytest
import torch

import pypeft_fast as pf

K, N, R = 6, 5, 4
NAN, INF = float("nan"), float("inf")


def bank():
    torch.manual_seed(0)
    module = pf.nn.MultiLoRALinear(K, N, max_adapters=2, max_rank=R)
    module.add("desk", torch.randn(3, K), torch.randn(N, 3), scaling=2.0)
    return module


def pair(A=None, B=None):
    return torch.ones(2, K) if A is None else A, torch.ones(N, 2) if B is None else B


FAULTS = {
    "an array": (pair(A=torch.ones(2, K).numpy()), {}, TypeError, "lora_A is a ndarray; give a tensor"),
    "a list": (pair(B=[[1.0, 1.0]] * N), {}, TypeError, "lora_B is a list; give a tensor"),
    "meta": (pair(B=torch.ones(N, 2, device="meta")), {}, TypeError, "lora_B is on the device meta"),
    "sparse": (pair(B=torch.ones(N, 2).to_sparse()), {}, TypeError, "lora_B has layout torch.sparse_coo; give lora_B"),
    "complex": (pair(B=torch.ones(N, 2) + 0j), {}, TypeError, "lora_B has dtype torch.complex64"),
    "integers": (pair(A=torch.ones(2, K, dtype=torch.int8)), {}, TypeError, "lora_A has dtype torch.int8"),
    "NaN": (pair(A=torch.full((2, K), NAN)), {}, ValueError, "lora_A has values that are NaN or infinite in torch.fl"),
    "infinite": (pair(B=torch.full((N, 2), INF)), {}, ValueError, "lora_B has values that are NaN or infinite"),
    "too large": (pair(B=torch.full((N, 2), 1e300, dtype=torch.float64)), {}, ValueError, "infinite in torch.float32"),
    "scaling": (pair(), dict(scaling=NAN), ValueError, "scaling=nan must be a number that is finite"),
    "scaling inf": (pair(), dict(scaling=INF), ValueError, "scaling=inf must be a number that is finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing(fault):
    matrices, options, error, words = FAULTS[fault]
    module = bank()
    before, held = copy.deepcopy(module.state_dict()), dict(module._held)
    for call in (lambda: module.replace("desk", *matrices, **options), lambda: module.add("new", *matrices, **options)):
        with pytest.raises(error, match=words):
            call()
        assert module._held == held and all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_a_copy_that_fails_changes_nothing(monkeypatch):
    """The matrices are made whole before the first of them goes into the slot."""
    module = bank()
    before = copy.deepcopy(module.state_dict())

    def fails(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch, "_foreach_copy_", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        module.replace("desk", *pair())
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_parts_of_the_slot_itself():
    module = bank()
    A, B = module.parameters_of("desk")
    want = A[1:3].detach().clone(), B[:, 1:3].detach().clone()
    module.replace("desk", A[1:3], B[:, 1:3])
    assert torch.equal(A[:2], want[0]) and torch.equal(B[:, :2], want[1]) and not A[2:].any() and not B[:, 2:].any()


def test_the_state_of_a_larger_bank_or_a_damaged_one_changes_no_names():
    larger = pf.nn.MultiLoRALinear(8, 6, max_adapters=3, max_rank=4)
    for name in "abc":
        larger.add(name, torch.randn(4, 8), torch.randn(6, 4))
    state = larger.state_dict()
    damaged = state | {"_extra_state": torch.tensor([123, 1], dtype=torch.uint8)}
    held = dict(slot=0, r=1, scaling=1.0, dropout=0.0)
    wrong = [
        {"a": held | its} for its in (dict(slot=-1), dict(r=0), dict(scaling="x"), dict(dropout=5), dict(slot="0"))
    ]
    wrong = [
        state | {"_extra_state": torch.tensor(list(json.dumps(its).encode()), dtype=torch.uint8)}
        for its in (*wrong, {"a": held, "b": held})
    ]
    x = torch.randn(2, 8)
    for room in (dict(max_adapters=2, max_rank=4), dict(max_adapters=3, max_rank=2)):
        bank = pf.nn.MultiLoRALinear(8, 6, **room)
        bank.add("own", torch.randn(2, 8), torch.randn(6, 2))
        for given, words in (
            (state, "has slot=.*; make a bank with more room"),
            (damaged, "_extra_state"),
            *((its, "adapters that no bank can hold") for its in wrong),
        ):
            with pytest.raises(ValueError, match=words):
                bank.load_state_dict(given, strict=False)
        assert bank.adapter_names == ["own"] and bank(x, ["own", None]).isfinite().all()
