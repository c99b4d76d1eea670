"""MultiLoRALinear: a bank of named adapters, which are added and removed while the layer is in use."""

import copy

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import pypeft_fast as pf
from tests.nn.copies import COPIES

K, N = 24, 17


def matrices(r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, K, generator=generator), torch.randn(N, r, generator=generator)


def bank(**options):
    module = pf.nn.MultiLoRALinear(K, N, **dict(max_adapters=3, max_rank=8) | options)
    module.add("desk", *matrices(4, 1), scaling=2.0)
    module.add("billing", *matrices(8, 2), scaling=0.5, dropout=0.3)
    return module.eval()


def alone(module, x, name, A, B, scaling):
    return F.linear(x, module.weight, module.bias) + scaling * x @ A.t() @ B.t()


def test_each_row_meets_the_adapter_of_its_name():
    module, x = bank(), torch.randn(4, K)
    y = module(x, ["billing", None, "desk", "billing"])
    torch.testing.assert_close(y[1], F.linear(x, module.weight, module.bias)[1])
    torch.testing.assert_close(y[2], alone(module, x, "desk", *matrices(4, 1), 2.0)[2])
    torch.testing.assert_close(y[[0, 3]], alone(module, x, "billing", *matrices(8, 2), 0.5)[[0, 3]])
    index = module.index(["billing", None, "desk", "billing"])
    assert index.tolist() == [1, -1, 0, 1] and torch.equal(module(x, index), y)
    assert module.adapter_names == ["desk", "billing"]


def test_a_sequence_a_name():
    module, x = bank(), torch.randn(2, 5, K)
    y = module(x, ["desk", None])
    assert y.shape == (2, 5, N)
    torch.testing.assert_close(y[0], alone(module, x[0], "desk", *matrices(4, 1), 2.0))


def test_adding_replacing_and_removing_allocate_no_parameter():
    module, x = bank(), torch.randn(3, K)
    before = [p.data_ptr() for p in module.parameters()]
    assert module.add("sales", *matrices(1, 3)) == 2
    module.remove("desk")
    assert module.add("returns", *matrices(2, 4)) == 0 and module.adapter_names == ["billing", "sales", "returns"]
    torch.testing.assert_close(module(x, ["returns"] * 3), alone(module, x, "returns", *matrices(2, 4), 1.0))
    module.replace("sales", *matrices(5, 5), scaling=3.0)
    torch.testing.assert_close(module(x, ["sales"] * 3), alone(module, x, "sales", *matrices(5, 5), 3.0))
    torch.testing.assert_close(module(x, ["billing"] * 3), alone(module, x, "billing", *matrices(8, 2), 0.5))
    assert [p.data_ptr() for p in module.parameters()] == before


def test_a_removed_adapter_stays_usable_by_index_until_its_slot_is_reused():
    module, x = bank(max_adapters=4), torch.randn(2, K)
    index = module.index(["desk", "billing"])
    before = module(x, index)
    module.remove("desk")
    module.add("sales", *matrices(2, 3))  # takes a slot that has been free for longer
    assert torch.equal(module(x, index), before)


def test_a_smaller_rank_has_fewer_operations():
    def flops(r):
        module = pf.nn.MultiLoRALinear(K, N, max_adapters=1, max_rank=16)
        module.add("desk", *matrices(r))
        with FlopCounterMode(display=False) as counted:
            module(torch.randn(4, K), ["desk"] * 4)
        return counted.get_total_flops()

    assert flops(2) == 2 * 4 * (N * K + (N + K) * 2) < flops(16)


def test_an_adapter_has_no_gradient_of_the_one_before_it():
    module = bank()
    module(torch.randn(2, K), ["desk", "billing"]).sum().backward()
    slots = {name: module.parameters_of(name) for name in ("desk", "billing")}
    module.replace("desk", *matrices(2))
    assert all(t.grad is None for t in slots["desk"]) and all(t.grad is not None for t in slots["billing"])


def test_adding_recompiles_nothing():
    module, x = bank(), torch.randn(3, K)
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counted)
    index = torch.tensor([0, 1, 2])
    compiled(x, index)
    module.add("sales", *matrices(5, 7), scaling=4.0)
    torch.testing.assert_close(compiled(x, index), module(x, index))
    module.replace("desk", *matrices(2, 8), scaling=1.25)
    torch.testing.assert_close(compiled(x, index), module(x, index))
    assert counted.frame_count == 1


def test_each_adapter_trains_and_the_frozen_layer_does_not():
    module, x = bank().train(), torch.randn(6, K)
    frozen, others = module.weight.clone(), [p.clone() for p in module.parameters_of("billing")]
    A, B = module.parameters_of("desk")
    optimizer = torch.optim.SGD([A, B], lr=0.1)
    start = A.clone(), B.clone()
    module(x, ["desk", None] * 3).square().mean().backward()
    assert not A.grad[4:].any() and not B.grad[:, 4:].any(), "behind the adapter's rank there is nothing to train"
    assert all(not p.grad.any() for p in module.parameters_of("billing"))
    optimizer.step()
    assert not torch.equal(A, start[0]) and not torch.equal(B, start[1]) and torch.equal(module.weight, frozen)
    assert all(torch.equal(a, b) for a, b in zip(others, module.parameters_of("billing"), strict=True))
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert names == {f"lora_{m}.{i}" for m in "AB" for i in range(3)}


def test_dropout_is_each_adapters_own_and_in_training_only():
    module, x = bank(), torch.randn(4, K)
    assert torch.equal(module(x, ["billing"] * 4), module(x, ["billing"] * 4))
    module.train()
    first, second = (module(x, ["billing", "billing", "desk", None]) for _ in range(2))
    assert not torch.equal(first[:2], second[:2]) and torch.equal(first[2:], second[2:])


def test_a_state_dict_and_copies_keep_the_names():
    module, x = bank(), torch.randn(2, K)
    y = module(x, ["desk", "billing"])
    other = pf.nn.MultiLoRALinear(K, N, max_adapters=3, max_rank=8).eval()
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    assert other.adapter_names == ["desk", "billing"] and torch.equal(other(x, ["desk", "billing"]), y)
    assert other.add("sales", *matrices(1)) == 2
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(module.state_dict())))
    assert other.adapter_names == ["desk", "billing"] and torch.equal(other(x, ["desk", "billing"]), y)
    for way in COPIES.values():
        assert torch.equal(way(module)(x, ["desk", "billing"]), y)


def test_from_linear_shares_and_freezes():
    linear, x = nn.Linear(K, N), torch.randn(2, K)
    module = pf.nn.MultiLoRALinear.from_linear(linear, max_adapters=1, max_rank=2)
    assert module.weight is linear.weight and not linear.weight.requires_grad and module.adapter_names == []
    torch.testing.assert_close(module(x, [None, None]), linear(x))


def test_a_half_precision_layer_with_float32_adapters_agrees_with_float32():
    module, x = bank(dtype=torch.bfloat16), torch.randn(2, K).bfloat16()
    assert module.lora_A[0].dtype == torch.float32 and module.weight.dtype == torch.bfloat16
    y = module(x, ["desk", None])
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        expected = alone(module.float(), x.float(), "desk", *matrices(4, 1), 2.0)[0], module(x.float(), [None, None])[1]
    for row, want in zip(y, expected, strict=True):
        torch.testing.assert_close(row.float(), want, rtol=0, atol=0.01 * want.abs().max().item())


@pytest.mark.parametrize(
    "call,error,words",
    [
        (
            lambda m: m(torch.randn(1, K), ["sales"]),
            KeyError,
            "name='sales' is not in the bank, which holds desk, bill",
        ),
        (
            lambda m: m.add("desk", *matrices(1)),
            ValueError,
            "name='desk' is in the bank; give another name, or call re",
        ),
        (lambda m: m.add("", *matrices(1)), ValueError, "name='' must be a string that is not empty"),
        (lambda m: m.add("a", *matrices(9)), ValueError, r"lora_A has shape \(9, 24\), .* r from 1 to max_rank=8"),
        (lambda m: m.add("a", matrices(2)[0], matrices(3)[1]), ValueError, r"lora_B has shape \(17, 3\), expected"),
        (lambda m: m.add("a", *matrices(2), scaling="2"), ValueError, "scaling='2' must be a number"),
        (lambda m: m.add("a", *matrices(2), dropout=1.0), ValueError, "p=1.0 must be in"),
        (
            lambda m: [m.add(n, *matrices(2)) for n in "ab"],
            ValueError,
            "the bank is full: max_adapters=3 are desk, bill",
        ),
        (lambda m: m.replace("a", *matrices(2)), KeyError, "name='a' is not in the bank"),
        (lambda m: m.remove("a"), KeyError, "remove: name='a' is not in the bank, which holds desk, billing; give one"),
        (lambda m: pf.nn.MultiLoRALinear(K, N).remove("a"), KeyError, "not in the bank, which is empty; add one first"),
        (lambda m: m.parameters_of(["a"]), KeyError, r"parameters_of: name=\['a'\] is not in the bank"),
        (lambda m: m(torch.randn(1, K), "desk"), TypeError, "names='desk' must be a list of names"),
        (lambda m: m(torch.randn(1, K), None), TypeError, "names=None must be a list of names"),
        (lambda m: m.add("a", *matrices(2), dropout=None), TypeError, "add: dropout=None must be a number"),
        (lambda m: m.add(["a"], *matrices(2)), ValueError, r"name=\['a'\] must be a string"),
        (lambda m: m(torch.randn(1, K), torch.tensor([3])), ValueError, "adapter_index holds 3; there are 3 adapters"),
        (lambda m: m.merge(), RuntimeError, "a bank holds several adapters"),
        (lambda m: pf.nn.MultiLoRALinear(K, N, max_rank=0), ValueError, "max_rank=0 must be an integer of at least 1"),
        (lambda m: pf.nn.MultiLoRALinear(K, N, max_adapters=True), ValueError, "max_adapters=True must be an integer"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, error, words):
    module = bank()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=words):
        call(module)
    after = module.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items() if n.startswith("lora") and not n.endswith(".2"))
