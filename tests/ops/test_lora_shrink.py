import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from pypeft_fast.ops.lora_shrink import lora_shrink
from pypeft_fast.testing import Case, assert_agrees, available
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda x: x[0], ValueError, "x must have 2 dimensions"),
        (0, lambda x: x.int(), TypeError, "x has dtype torch.int32"),
        (0, lambda x: x[:, 1:], ValueError, r"x has shape \(6, 19\), expected \(.., 20\): lora_A of shape \(3, 20\)"),
        (1, lambda A: A[:0], ValueError, "rank must be at least 1"),
        (1, lambda A: A.half(), TypeError, "lora_A is torch.float16 over a torch.float32 x"),
        (2, -0.1, ValueError, r"p=-0.1 must be in \[0, 1\)"),
        (2, 1.0, ValueError, "p=1.0 must be"),
        (2, 0.999999, ValueError, "at most 65535/65536"),
        (2, float("nan"), ValueError, "p=nan must be"),
        (3, None, ValueError, "a seed if and only if p > 0"),
        (3, lambda seed: seed.int(), TypeError, "seed must be an int64 tensor"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_shrink", index, value, error, words)


def test_mask_and_sum_of_a_known_seed():
    x, A, seed = torch.ones(2, 12), torch.ones(1, 12), torch.tensor([0])
    s, mask = lora_shrink(x, A, 0.5, seed)
    # The known answer for counter 0 and key 0 is 5f6fb709 0d893f64 4f121f81 4f730a48. Lanes are halves, low half first;
    # lanes >= 0x8000 are kept.
    lanes = [0xB709, 0x5F6F, 0x3F64, 0x0D89, 0x1F81, 0x4F12, 0x0A48, 0x4F73]
    assert mask[0, 0] == sum(1 << j for j, lane in enumerate(lanes) if lane >= 0x8000)
    assert torch.equal(s[:, 0], 2.0 * philox.unpack(mask, 12).sum(1))


def lanes(rows, columns, seed):
    """The 16-bit lanes of the dropout stream that fall to [rows, columns], 8 columns to a counter."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    counters = (philox.philox_4x32_7((i, 0, 0, 0), key) for i in range(rows * columns // 8))
    return torch.tensor([words[j // 2] >> 16 * (j % 2) & 0xFFFF for words in counters for j in range(8)])


def assert_that_a_threshold_decides(x_dtype, A_dtype):
    """Where a carry out of 15 or 16 bits would decide, and at lanes of the stream and one above."""
    x, A, seed = torch.ones(3, 64, dtype=x_dtype), torch.ones(1, 64, dtype=A_dtype), 0x0123456789ABCDEF
    found = lanes(3, 64, seed).view(3, 64)
    drawn = [int(found.min()), int(found.max()), *found[0, :8].tolist()]
    for threshold in (0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, *drawn, *(lane + 1 for lane in drawn)):
        s, mask = lora_shrink(x, A, max(threshold, 0.25) / 65536, torch.tensor([seed]))
        assert torch.equal(philox.unpack(mask, 64), found >= threshold), threshold
        kept = (found >= threshold).sum(1, keepdim=True) * 65536 / (65536 - threshold)
        torch.testing.assert_close(s, kept.to(s.dtype))


@pytest.mark.parametrize("kernel", available(OPS["lora_shrink"]))
@pytest.mark.parametrize("adapter", [torch.bfloat16, torch.float32])
def test_exactly_the_lanes_that_reach_the_threshold_are_kept(kernel, adapter):
    with using(kernel):
        assert_that_a_threshold_decides(torch.bfloat16, adapter)


def test_no_dropout_costs_no_mask():
    _, mask = lora_shrink(torch.ones(4, 9), torch.ones(2, 9), 0.0, None)
    assert mask.shape == (0, 2) and mask.numel() == 0


@pytest.mark.parametrize("kernel", available(OPS["lora_shrink"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_groups_are_the_groups_side_by_side(kernel, dtype, poisoned):
    x, A, seeds = torch.randn(37, 83).to(dtype), torch.randn(15, 83).to(dtype), torch.tensor([5, 7, 11])
    with using(kernel):
        s, mask = lora_shrink(x, A, 0.3, seeds)
        alone = [lora_shrink(x, part, 0.3, seed) for part, seed in zip(A.chunk(3), seeds.split(1), strict=True)]
    torch.testing.assert_close(s, torch.cat([one for one, _ in alone], dim=1))
    assert torch.equal(mask, torch.cat([one for _, one in alone]))
    assert torch.equal(mask[37:74], philox.packed_mask(37, 83, 0.3, seeds[1:2]))


@pytest.mark.parametrize("kernel", available(OPS["lora_shrink"]))
def test_seeds_may_have_any_stride(kernel):
    x, A = torch.randn(5, 24), torch.randn(6, 24)
    with using(kernel):
        for seeds in (torch.tensor([5, 1, 7, 1, 11, 1])[::2], torch.tensor([5]).expand(3)):
            _, mask = lora_shrink(x, A, 0.3, seeds)
            assert torch.equal(mask, torch.cat([philox.packed_mask(5, 24, 0.3, seed) for seed in seeds.split(1)]))


@pytest.mark.parametrize("kernel", available(OPS["lora_shrink"]))
@pytest.mark.parametrize("r", [4, 8, 16, 48])
def test_a_rank_of_whole_vectors_and_several_tiles_of_columns(kernel, r, poisoned):
    assert_agrees("lora_shrink", kernel, Case(20, 600, 9, r, 0.3))
