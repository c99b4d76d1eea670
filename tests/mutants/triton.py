"""Mutations of the Triton kernels. The tests run these kernels in the interpreter of Triton."""

from .mutation import Mutation

EVERY, MEMORY = "tests/ops/test_every_op.py", "tests/ops/test_triton_memory.py"
SEGMENTS = "tests/ops/test_triton_segments.py"


def agrees(op):
    return f"{EVERY} -k 'test_agrees and {op}-triton'"


def _triton(name, file, old, new, *tests, **options):
    return Mutation(f"triton-{name}", f"kernels/{file}", old, new, tests, **options)


MUTATIONS = [
    _triton("philox-six-rounds", "_philox.py", "static_range(7)", "static_range(6)", agrees("lora_shrink")),
    _triton("philox-high-word-dropped", "_philox.py", "(counter >> 32).to(tl.uint32)",
            "(counter >> 63).to(tl.uint32)", "tests/ops/test_philox_stream.py"),
    _triton("threshold-kept", "_philox.py", ">= threshold", "> threshold", "tests/ops/test_philox_stream.py"),
    _triton("mask-bits-exchanged", "_philox.py", "l1.to(tl.int32) * 2 + l2.to(tl.int32) * 4",
            "l1.to(tl.int32) * 4 + l2.to(tl.int32) * 2", agrees("lora_shrink")),
    _triton("shrink-mask-past-the-last-column", "_philox.py", "tl.minimum(K - byte * 8, 8)", "(byte * 0 + 8)",
            agrees("lora_shrink")),
    _triton("shrink-one-seed-for-all", "lora_shrink.py", "tl.load(seed_ptr + g)", "tl.load(seed_ptr)",
            "tests/ops/test_lora_shrink.py"),
    _triton("shrink-every-block-stores-the-mask", "_philox.py", "if rank_block == 0:", "if rank_block >= 0:",
            agrees("lora_shrink"), equivalent="all blocks of ranks compute the same mask and store the same bytes"),
    _triton("shrink-group-without-stride", "lora_shrink.py", "a_ptr + g * tl.cast(r, tl.int64) * a_r",
            "a_ptr + g * tl.cast(r, tl.int64)", "tests/ops/test_lora_shrink.py"),
    _triton("load-a-column-more", "_gemm.py", "mask=column < columns", "mask=column <= columns", MEMORY),
    _triton("offset-in-31-bits", "_gemm.py", "row[:, None].to(tl.int64) * row_stride + column[None, :].to(",
            "row[:, None] * row_stride + column[None, :].to(", f"{MEMORY} -k past_31_bits"),
    _triton("product-offset-in-31-bits", "_gemm.py", "tl.minimum(row, M - 1).to(tl.int64)", "tl.minimum(row, M - 1)",
            f"{MEMORY} -k past_31_bits"),
    _triton("tiles-of-a-short-group", "_gemm.py", "min(down - group * GROUP, GROUP)", "GROUP", agrees("lora_linear")),
    _triton("last-partial-lost", "_reduce.py", "tl.range(partials,", "tl.range(partials - 1,", agrees("lora_da")),
    _triton("ticket-left", "_reduce.py", "tl.store(ticket_ptr, 0)", "tl.store(ticket_ptr, 1)", agrees("lora_da"),
            "tests/ops/test_tickets.py"),
    _triton("linear-not-scaled", "lora_linear.py", "acc *= scaling", "acc *= 1.0", agrees("lora_linear")),
    _triton("linear-bias-twice", "lora_linear.py", "acc += bias", "acc += 2.0 * bias", agrees("lora_linear")),
    _triton("dx-dropout-not-scaled", "lora_dx.py", "acc * scale, 0.0", "acc, 0.0", agrees("lora_dx")),
    _triton("da-sums-in-bfloat16", "lora_da.py", "dot(x.T, ds, da, PRECISION)",
            "dot(x.T, ds, da, PRECISION).to(tl.bfloat16).to(tl.float32)", agrees("lora_da")),
    _triton("db-takes-the-next-stripe", "lora_ds_db.py", "s_m, s_r, end, r)", "s_m, s_r, M, r)", agrees("lora_ds_db"),
            equivalent="a stripe is whole tiles of rows, so no tile reaches into the next stripe"),
    _triton("ia3-dx-not-scaled", "ia3_dx_dl.py", "acc *= load_row(l_ptr, column, l_i, K)", "acc *= 1.0",
            "tests/ops/test_ia3_dx_dl.py"),
    _triton("dl-rows-past-the-end", "ia3_dx_dl.py", "tl.where(row[:, None] < M, acc * x.to(tl.float32), 0.0)",
            "acc * x.to(tl.float32)", agrees("ia3_dx_dl"), "tests/ops/test_ia3_dx_dl.py"),
    _triton("segment-of-the-neighbours-adapter", "_segments.py", "return own - 1, slot",
            "return tl.minimum(own, n - 1), slot",
            agrees("multi_lora_forward")),
    _triton("segment-rows-off-by-one-at-a-blocks-edge", "_segments.py", "mask=at < end, other=M",
            "mask=at <= end, other=M",
            agrees("multi_lora_backward")),
    _triton("segment-slots-of-groups-collide", "_segments.py", "start // L + group <= slot",
            "start // L + group < slot", SEGMENTS),
    _triton("segment-order-within-an-adapter", "_segments.py", "tl.cumsum(count, axis=0) - 1",
            "tl.sum(count, axis=0) - tl.cumsum(count, axis=0)", SEGMENTS),
    _triton("segment-index-not-checked", "_segments.py", "(adapter >= 0) & (adapter < n)", "adapter >= 0", SEGMENTS),
    _triton("multi-neighbours-scaling", "_segment_low_rank.py", "low *= real(table_ptr, adapter, SCALING)",
            "low *= real(table_ptr, (adapter + 1) % n, SCALING)", agrees("multi_lora_forward")),
    _triton("multi-row-loads-the-neighbours-b", "multi_lora_forward.py", "tl.maximum(own, 0).to(tl.int64)[:",
            "tl.maximum(own - 1, 0).to(tl.int64)[:", agrees("multi_lora_forward")),
    _triton("multi-low-rank-added-to-every-row", "_segment_low_rank.py", "tl.where(own[:, None] == adapter, low",
            "tl.where(own[:, None] >= 0, low", agrees("multi_lora_forward")),
    _triton("multi-s-beyond-the-rank", "_segment_shrink.py", "tl.where(rank[None, :] < r, s, 0.0)", "s",
            f"{SEGMENTS} -k infinite"),
    _triton("multi-mask-left-without-dropout", "_segment_shrink.py", "if threshold < 0:", "if threshold < -1:",
            agrees("multi_lora_forward")),
    _triton("multi-seed-of-the-first-adapter", "_segment_shrink.py", "seeds_ptr + known.to(tl.int64) * seeds_n",
            "seeds_ptr", agrees("multi_lora_forward")),
    _triton("multi-ds-neighbours-scaling", "_segment_gradients.py", "real(table_ptr, adapter, SCALING), tl",
            "real(table_ptr, (adapter + 1) % n, SCALING), tl", agrees("multi_lora_backward")),
    _triton("segment-partial-sums-of-two-adapters-collide", "_segments.py", "return 2 * (first // L)",
            "return first // L", f"{SEGMENTS} -k partial"),
    _triton("multi-gradient-of-the-neighbour", "_segment_gradients.py", "tl.where(adapter == at, pointers[at]",
            "tl.where(adapter + 1 == at, pointers[at]", agrees("multi_lora_backward")),
    _triton("multi-dx-dropout-of-every-row", "multi_lora_backward.py", "THRESHOLD, -1) >= 0", "THRESHOLD, -1) >= -1",
            agrees("multi_lora_backward")),
    _triton("multi-table-not-of-these-values", "_adapters.py", "key = (stream.cuda_stream if on_gpu else None, values)",
            "key = (stream.cuda_stream if on_gpu else None, values[:4])", f"{SEGMENTS} -k number_of_launches"),
    _triton("low-rank-not-scaled", "_low_rank.py", "acc *= scale", "acc *= 1.0", agrees("lora_linear")),
    _triton("low-rank-bias-of-the-first-column", "_low_rank.py", "load_row(bias_ptr, column, bias_o, O)",
            "load_row(bias_ptr, column * 0, bias_o, O)", agrees("lora_linear")),
    _triton("sigmoid-of-the-size", "swiglu.py", "tl.where(x < 0, small, 1.0)", "1.0", agrees("swiglu")),
]  # fmt: skip
