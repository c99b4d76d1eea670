"""The dropout stream compared with the published known answers of Random123 and the definition of the packed mask."""

import pytest
import torch

from pypeft_fast.ops import philox
from tests.device import DEVICE

# From kat_vectors of Random123 1.14, "philox4x32 7": counter, key, output.
KNOWN = """
00000000 00000000 00000000 00000000 00000000 00000000   5f6fb709 0d893f64 4f121f81 4f730a48
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff   5207ddc2 45165e59 4d8ee751 8c52f662
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0   4dfccaba 190a87f0 c47362ba b6b5242a
"""


@pytest.mark.parametrize("line", KNOWN.strip().splitlines())
def test_known_answers(line):
    words = [int(word, 16) for word in line.split()]
    tensors = [torch.tensor([w]) for w in words[:6]]
    assert list(philox.philox_4x32_7(words[:4], words[4:6])) == words[6:]  # exact Python integers
    assert [int(w) for w in philox.philox_4x32_7(tensors[:4], tensors[4:])] == words[6:]  # wrapping int64


@pytest.mark.parametrize("M,K", [(1, 1), (3, 8), (5, 13), (4, 64)])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9999])
def test_mask_is_the_stream_packed(M, K, p):
    seed = -0x0123456789ABCDEF  # the key is its two's complement
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    mask = philox.packed_mask(M, K, p, torch.tensor([seed]))
    assert mask.shape == (M, (K + 7) // 8)
    for m in range(M):
        for k in range((K + 7) // 8 * 8):
            index = m * mask.shape[1] + k // 8
            words = philox.philox_4x32_7((index & 0xFFFFFFFF, index >> 32, 0, 0), key)
            lane = words[k % 8 // 2] >> 16 * (k % 2) & 0xFFFF
            assert (int(mask[m, k // 8]) >> k % 8 & 1) == (k < K and lane >= round(p * 65536))
    assert torch.equal(
        philox.unpack(mask, K).sum(1), torch.tensor([sum(bin(b).count("1") for b in row) for row in mask.tolist()])
    )


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_rate_and_mean(p):
    mask = philox.packed_mask(512, 512, p, torch.tensor([7]))
    kept = philox.unpack(mask, 512).double()
    sigma = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 5 * sigma
    assert abs(philox.dropped(torch.ones(512, 512), mask, p).mean() - 1) < 5 * sigma / (1 - p)
    rows = kept - kept.mean()
    assert abs((rows[:-1] * rows[1:]).mean()) < 5 * p * (1 - p) / 512  # neighbouring rows are independent


def test_seed_follows_the_generator():
    torch.manual_seed(3)
    first, second = philox.draw_seed(DEVICE), philox.draw_seed(DEVICE)
    torch.manual_seed(3)
    assert torch.equal(first, philox.draw_seed(DEVICE)) and not torch.equal(first, second)
    generator = torch.Generator(DEVICE).manual_seed(3)
    assert torch.equal(first, philox.draw_seed(DEVICE, generator))
