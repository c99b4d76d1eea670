"""Programs with known results in many schedules, and with planted bugs that the emulator must find."""

import pytest
import torch

from tests.emulator.run import const, run

SEEDS = range(20)
REDUCE_BUGS = {
    1: "race|which nobody wrote",  # no barrier
    2: r"load of 4 bytes out of bounds of global memory: at byte 2400 .* which has 2400",
    5: "__shfl_xor_sync: mask ffffffff names lanes that have returned",
    6: "threads of a block wait at different barriers: .*known.cu",
}


def reduced(n, blocks, bug, seed, **options):
    x, sums = torch.randn(n), torch.full((blocks,), torch.nan)
    run("reduce", const(x), sums, n, blocks, bug, seed=seed, **options)
    padded = torch.cat([x, torch.zeros(blocks * 256 - n)]).view(blocks, 256).double().sum(1)
    return sums, padded


@pytest.mark.parametrize("flavour", ["plain", "portable"])
def test_reduction(flavour):
    for seed in SEEDS:
        sums, truth = reduced(600, 3, 0, seed, flavour=flavour)
        torch.testing.assert_close(sums.double(), truth, rtol=1e-5, atol=1e-5)


def test_threads_may_return_early_and_the_rest_go_on():
    sums, truth = reduced(256, 1, 4, seed=0)
    torch.testing.assert_close(sums.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bug", REDUCE_BUGS)
def test_mistakes_in_a_reduction(bug):
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=f"emulator: .*({REDUCE_BUGS[bug]})"):
            reduced(600, 3, bug, seed)


def test_a_wrong_lane_in_a_shuffle_gives_a_wrong_sum():
    sums, truth = reduced(256, 1, 3, seed=0)
    assert not torch.allclose(sums.double(), truth, rtol=1e-5, atol=1e-5)


def test_the_last_block_adds_what_all_have_stored():
    x, ticket = torch.randn(5, 256), torch.zeros(1, dtype=torch.int32)
    for seed in SEEDS:
        sums = torch.full((256,), torch.nan)
        run("last_block", const(x), torch.full((5, 256), torch.nan), ticket, sums, 5, 0, seed=seed)
        assert torch.equal(sums, x[0] + x[1] + x[2] + x[3] + x[4]) and ticket.item() == 0
        for bug, words in ((1, "a ticket is drawn with no barrier after|no barrier after the block's ticket"),
                           (2, "race: a store to global memory with no barrier after the block's ticket|"
                               "a ticket is drawn with no barrier after")):  # fmt: skip
            with pytest.raises(RuntimeError, match=words):
                run("last_block", const(x), torch.zeros(5, 256), torch.zeros_like(ticket), sums, 5, bug, seed=seed)


OVERLAP_BUGS = {
    1: "load of what the launch before stores, with no wait",
    2: "a store to global memory with no wait for the launch before",
    3: "a thread ends with no wait for the launch before",
    4: "cp.async of what the launch before stores, with no wait",
}


def test_a_launch_that_overlaps_with_the_one_before_waits_for_its_stores():
    x, twice, y = torch.randn(128), torch.empty(128), torch.empty(128)
    for seed in SEEDS:
        run("overlap", const(x), twice.fill_(torch.nan), y.fill_(torch.nan), 2, 1, 0, seed=seed)
        assert torch.equal(y, 2 * x + 1)
        run("overlap_alone", const(x), const(twice), y.fill_(torch.nan), 2, seed=seed)
        assert torch.equal(y, 2 * x + 1)
        for bug, words in OVERLAP_BUGS.items():
            with pytest.raises(RuntimeError, match=f"emulator: {words}"):
                run("overlap", const(x), twice, y, 2, 1, bug, seed=seed)


def test_transpose():
    x, y = torch.randn(32, 32), torch.empty(32, 32)
    for seed in SEEDS:
        run("transpose", const(x), y.fill_(torch.nan), 33, 0, seed=seed)
        assert torch.equal(y, x.t())
        with pytest.raises(RuntimeError, match="race: load|which nobody wrote"):
            run("transpose", const(x), y, 33, 1, seed=seed)  # no __syncwarp
    with pytest.raises(RuntimeError, match=r"load of 4 bytes out of bounds of shared memory: at byte 4224 of 4224"):
        run("transpose", const(x), y, 33, 2)
    with pytest.raises(RuntimeError, match="store into an input"):
        run("transpose", const(x), const(y), 33, 0)
    with pytest.raises(RuntimeError, match="of shared memory; the device has"):
        run("transpose", const(x), y, 1 << 20, 0)
    with pytest.raises(RuntimeError, match="of shared memory without cudaFuncSetAttribute"):
        run("transpose", const(x), y, 600, 0)


@pytest.mark.parametrize("kept", [256, 255, 253, 250, 4, 1, 0])
def test_asynchronous_copies_land_at_their_wait_and_fill_up_with_zeros(kept):
    x, y = torch.randn(256), torch.empty(256)
    for seed in SEEDS:
        run("copy", const(x), y.fill_(torch.nan), kept, 1, 1, 0, seed=seed)
        assert torch.equal(y[:kept], x[:kept]) and not y[kept:].any()
        run("copy", const(x), y.fill_(torch.nan), kept, 1, 0, 1, seed=seed)  # a thread reads its own copy
        assert torch.equal(y[:kept], x[:kept]) and not y[kept:].any()
        with pytest.raises(RuntimeError, match="to which a cp.async is still under way"):
            run("copy", const(x), y, kept, 0, 1, 0, seed=seed)
        with pytest.raises(RuntimeError, match="race: load|still under way|which nobody wrote"):
            run("copy", const(x), y, kept, 1, 0, 0, seed=seed)
    if kept > 252:
        with pytest.raises(RuntimeError, match="cp.async of .* bytes out of bounds of global memory"):
            run("copy", const(x[: kept - 1]), y, kept, 1, 1, 0)


def test_shuffles_and_votes():
    out = torch.empty(32, 7, dtype=torch.int32)
    run("lanes", out)
    for lane in range(32):
        up = lane - 3 if lane % 8 >= 3 else lane
        down = lane + 3 if lane % 8 < 5 else lane
        votes = sum(1 << i for i in range(0, 32, 3))
        expected = [100 + 3 * lane % 32, 100 + up, 100 + down, 100 + (lane ^ 5), votes - (votes >> 31 << 32), 1, 0]
        assert out[lane].tolist() == expected


def test_misaligned_accesses():
    x, y = torch.randn(264), torch.empty(256)
    with pytest.raises(RuntimeError, match="cp.async of 16 bytes at a misaligned address"):
        run("copy", const(x[1:257]), y, 256, 1, 1, 0)
    with pytest.raises(RuntimeError, match="store of 16 bytes at a misaligned address"):
        run("copy", const(x[:256]), torch.empty(257)[1:], 256, 1, 1, 0)
