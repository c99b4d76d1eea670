"""Mutations of the C++ kernels for CPUs."""

from .mutation import Mutation

EVERY, ISAS = "tests/ops/test_every_op.py", "tests/ops/test_cpu_isa.py"
SURROUNDINGS = "tests/ops/test_surroundings.py -k cpu"
AVX512, BF16 = "avx512", "avx512bf16"


def agrees(op):
    return f"{EVERY} -k 'test_agrees and {op}-cpu'"


def _csrc(name, file, old, new, *tests, **options):
    return Mutation(name, f"csrc/{file}", old, new, tests, **options)


SIMD = [
    _csrc("simd-whole-vectors-only", "cpu/isa/simd.h", "for (; k + W <= n; k += W) narrow(out + k",
          "for (; k + W < n; k += W) narrow(out + k", agrees("lora_da"), agrees("lora_shrink"),
          equivalent="the code for the rest then stores the last whole vector, with all W elements"),
    _csrc("simd-mask-loses-a-ninth-column", "cpu/isa/simd.h", "columns > 8)", "columns > 9)", agrees("lora_da"),
          ISAS),
    _csrc("simd-bfloat16-ties-up", "cpu/isa/simd.h", "(0x7FFF + (bits >> 16 & 1))", "0x8000", agrees("lora_da"),
          f"{ISAS} -k baseline"),
    _csrc("simd-bfloat16-nan-rounds", "cpu/isa/simd.h", "v == v ? rounded : U{} + 0x7FC0", "rounded",
          agrees("lora_da"), f"{ISAS} -k baseline"),
    _csrc("simd-vector-too-wide", "cpu/isa/simd.h", "for (; j + W < columns;", "for (; j + W <= columns;",
          "tests/ops/test_lora_shrink.py"),
    _csrc("avx512-float16-truncated", "cpu/isa/avx512.h", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO",
          agrees("lora_da"), ISAS, needs=AVX512),
    _csrc("avx2-mask-bits-reversed", "cpu/isa/avx2.h", "0x0008000400020001", "0x0001000200040008", f"{ISAS} -k avx2",
          needs="avx2"),
    _csrc("baseline-mask-halves-exchanged", "cpu/isa/baseline.h", "16 * (j % 2)", "16 * (1 - j % 2)",
          f"{ISAS} -k baseline"),
]  # fmt: skip

DROPOUT = [
    _csrc("philox-six-rounds", "cpu/philox_body.h", "round < 7; ++round) {", "round < 6; ++round) {",
          agrees("lora_shrink")),
    _csrc("philox-high-word-dropped", "cpu/philox_body.h", "c1 = counters >> 32", "c1 = {}",
          "tests/ops/test_philox_stream.py"),
    _csrc("threshold-rounds-ties-up", "numbers.h", "std::nearbyint(p * 65536)); }", "p * 65536 + 0.5); }",
          "tests/ops/test_lora_da.py"),
    _csrc("dropout-scale-of-p", "numbers.h", "65536.0 / (65536 - dropout_threshold(p))", "1.0 / (1.0 - p)",
          agrees("lora_shrink")),
    _csrc("probability-rounds-to-one", "fits.h", "std::nearbyint(p * 65536) <= 65535",
          "std::nearbyint(p * 65536) <= 65536", "tests/ops/test_lora_forward.py"),
    _csrc("shrink-mask-past-the-last-column", "cpu/lora_shrink_body.h", "if (a.K % 8 == 0) return;",
          "if (true) return;", agrees("lora_shrink")),
    _csrc("shrink-counters-by-columns", "cpu/lora_shrink_body.h", "(uint64_t)m * a.mask_row",
          "(uint64_t)m * a.K / 8", agrees("lora_shrink")),
    _csrc("shrink-one-seed-for-all", "cpu/lora_shrink.cpp", "[group * of_groups.stride(0)]", "[0]",
          "tests/ops/test_lora_shrink.py"),
    _csrc("shrink-tiles-overwrite", "cpu/lora_shrink_body.h", "sums, a.ld, k > 0)", "sums, a.ld, false)",
          agrees("lora_shrink")),
    _csrc("da-dropout-not-scaled", "cpu/lora_da.cpp", "static_cast<float>(dropout_scale(p))", "1.0f",
          agrees("lora_da")),
    _csrc("da-tiles-overwrite", "cpu/lora_da_body.h", "DA_COLUMNS, m > 0)", "DA_COLUMNS, false)", agrees("lora_da")),
]  # fmt: skip

LOW_RANK = [
    _csrc("ds-last-of-many-parts-lost", "cpu/lora_ds_db_body.h", "task < a.tasks; ++task)",
          "task + 1 < a.tasks; ++task)", agrees("lora_ds_db")),
    _csrc("db-not-scaled", "cpu/transpose_out_body.h", "row * factor, width", "row, width", agrees("lora_ds_db")),
    _csrc("backward-ds-for-dx-only", "cpu/lora_backward.cpp", "need_dX || need_dA, need_dB)", "need_dX, need_dB)",
          "tests/ops/test_lora_backward.py"),
    _csrc("add-mask-on-the-frozen-part", "cpu/product/add_row_body.h",
          "fma(mask ? keep(sum, mask_bits(mask, k, W)) : sum, times, widen(y + k))",
          "(mask ? keep(fma(sum, times, widen(y + k)), mask_bits(mask, k, W)) : sum)", agrees("lora_dx")),
    _csrc("add-low-rank-not-scaled", "cpu/product/add.cpp", "args.factor = static_cast<float>(factor);",
          "args.factor = 1;", agrees("lora_linear")),
    _csrc("add-shift-lost-in-the-tail", "cpu/product/add_body.h", "shift ? widen(shift + k, n - k) : F{}", "F{}",
          "tests/ops/test_lora_linear.py", ISAS),
    _csrc("linear-bias-twice", "cpu/lora_linear.cpp", "Epilogue epilogue;", "Epilogue epilogue{bias, {}};",
          "tests/ops/test_lora_linear.py"),
    _csrc("few-rows-low-rank-not-scaled", "cpu/product/few_rows_body.h", "update[i][j] * a.factor",
          "update[i][j]", agrees("lora_linear")),
    _csrc("few-rows-bias-without-stride", "cpu/product/few_rows.cpp", "bias_step = epilogue.bias->stride(0)",
          "bias_step = 1", SURROUNDINGS, agrees("lora_linear")),
    _csrc("storage-offset-forgotten", "storage.h", "(offset + last + 1)", "(last + 1)", "tests/ops/test_storages.py"),
]  # fmt: skip

FEW_ROWS = "tests/ops/test_cpu_few_rows.py"
GEMM = [
    _csrc("gemm-odd-K-of-pairs", "cpu/product/gemm.cpp", "pairs && args.K % 2", "false && args.K % 2",
          f"{EVERY} -k nan_stays_in_its_row", needs=BF16),
    _csrc("gemm-odd-rank-of-pairs", "cpu/product/gemm.cpp", "(!pairs || args.r % 2 == 0)", "true",
          f"{EVERY} -k nan_stays_in_its_row", needs=BF16),
    _csrc("gemm-odd-K-reads-a-row-more", "cpu/product/panel_body.h", "rows < 2 ? F{} :", "rows < 1 ? F{} :",
          SURROUNDINGS, needs=BF16),
    _csrc("gemm-mask-without-stride", "cpu/product/gemm.cpp", "args.mask_row = mask->stride(0)",
          "args.mask_row = mask->size(1)", SURROUNDINGS, needs=AVX512),
    _csrc("gemm-mask-of-the-first-columns", "cpu/product/gemm_body.h", "g.mask_row + p.n / 8", "g.mask_row",
          agrees("lora_dx"), needs=AVX512),
    _csrc("gemm-steps-overwrite", "cpu/product/gemm_body.h", "sum[i][j] += part[i][j];", "sum[i][j] = part[i][j];",
          agrees("lora_linear"), needs=AVX512),
    _csrc("gemm-tiles-of-eight-rows", "cpu/product/gemm_body.h", "m + TILE_ROWS <= last", "m + TILE_ROWS < last",
          agrees("lora_linear"), agrees("lora_dx"), needs=AVX512,
          equivalent="the last eight rows are then two tiles of four, which sum each element in the same order"),
    _csrc("few-gemm-last-tile-starts-late", "cpu/product/few_gemm_body.h", "const T* a = p.a + at_most(m, p.rows - I)",
          "const T* a = p.a + at_most(m, p.rows - 1)", FEW_ROWS, needs=AVX512),
    _csrc("few-gemm-first-tile-packs-nothing", "cpu/product/few_gemm_body.h", "} else if (p.rows > I) {",
          "} else if (p.rows > 2 * I) {", FEW_ROWS, needs=AVX512),
    _csrc("few-gemm-tiles-read-an-old-panel", "cpu/product/few_gemm_body.h",
          "__builtin_memcpy(panel + j * W, &values[j], sizeof values[j])", "(void)panel", FEW_ROWS, needs=AVX512),
    _csrc("few-gemm-low-rank-not-scaled", "cpu/product/few_gemm_body.h", "(i * J + j) * W) * g.factor",
          "(i * J + j) * W)", FEW_ROWS, needs=AVX512),
    _csrc("few-gemm-units-of-the-first-piece", "cpu/product/few_gemm_body.h", "b.data + u * PER_UNIT<T> * b.row + n",
          "b.data + n", FEW_ROWS, needs=AVX512),
    _csrc("few-gemm-odd-rows-in-place", "cpu/product/few_gemm_body.h", " && end * PER_UNIT<T> <= p.K;", ";",
          FEW_ROWS, f"{EVERY} -k nan_stays_in_its_row", needs=BF16),
    _csrc("few-gemm-pairs-exchanged", "cpu/product/few_gemm_body.h", "low[i] = i % 2 * 2 * W + i / 2",
          "low[i] = (i + 1) % 2 * 2 * W + i / 2", FEW_ROWS, needs=BF16),
    _csrc("ds-of-few-rows-not-scaled", "cpu/lora_ds_db.cpp", "factors(r, static_cast<float>(scaling))",
          "factors(r, 1.0f)", FEW_ROWS, needs=AVX512),
    _csrc("sums-of-lanes-in-another-order", "cpu/isa/avx512.h", "i % 4 / 2 + i % 2 * 2 + i / 4 * 8",
          "i % 4 + i / 4 * 8", FEW_ROWS, needs=AVX512),
    _csrc("gemm-last-block-lost", "cpu/product/gemm.cpp", "parallel_for(0, ceil_div(args.M, args.block)",
          "parallel_for(0, args.M / args.block", agrees("lora_linear"), needs=AVX512),
]  # fmt: skip

COLUMNS = [
    _csrc("dl-first-of-many-parts-lost", "cpu/product/scale_columns_body.h", "int64_t task = 0; task < a.tasks",
          "int64_t task = a.tasks > 1; task < a.tasks", agrees("ia3_dx_dl")),
    _csrc("ia3-dx-not-scaled", "cpu/ia3_dx_dl.cpp", "product(scaled, {w", "product(dY, {w",
          agrees("ia3_dx_dl")),
    _csrc("ia3-z-not-written", "cpu/ia3_linear.cpp", "if (need_z) epilogue", "if (false) epilogue",
          agrees("ia3_linear")),
    _csrc("gemm-z-is-scaled", "cpu/product/gemm_body.h", "(T*)g.scale.z + at, total[i][j]",
          "(T*)g.scale.z + at, total[i][j] * load(p.factors + j * W)", agrees("ia3_linear"), needs=AVX512),
    _csrc("sigmoid-infinite", "cpu/sigmoid_body.h", "exp_minus > finite ? finite : exp_minus", "exp_minus",
          "tests/ops/test_swiglu_backward.py", agrees("swiglu_backward")),
    _csrc("swiglu-tail-lost", "cpu/swiglu_body.h", "if (rest) narrow", "if (rest > 1) narrow", agrees("swiglu")),
]  # fmt: skip

HIGH = "tests/ops/test_high_ranks.py"
VENDOR = [
    _csrc("vendor-takes-a-factor-of-zero", "cpu/product/vendor.cpp", "factor == 0 || ", "", f"{HIGH} -k zero"),
    _csrc("vendor-shrink-mask-of-the-first-group", "cpu/lora_shrink.cpp", "p > 0 ? group * M : 0", "0",
          f"{HIGH} -k stacked"),
    _csrc("vendor-shrink-not-scaled", "cpu/lora_shrink.cpp", "transposed(A), scale)", "transposed(A), 1)",
          f"{HIGH} -k shrink"),
    _csrc("vendor-ds-blocks-overwrite", "cpu/lora_ds_db.cpp", "n > 0 ? 1 : 0", "0", f"{HIGH} -k blocks"),
    _csrc("vendor-da-not-scaled", "cpu/lora_da.cpp", "part, dropout_scale(p))", "part, 1)", f"{HIGH} -k lora_da"),
    _csrc("vendor-da-mask-of-the-first-columns", "cpu/lora_da.cpp", "0, M, k / 8,", "0, M, 0,", f"{HIGH} -k blocks"),
    _csrc("vendor-add-not-scaled", "cpu/product/add.cpp", "0, args.r), right, factor)", "0, args.r), right, 1)",
          f"{HIGH} -k 'lora_linear or scaled'"),
    _csrc("vendor-add-z-of-the-first-block", "cpu/product/add.cpp", "args.scale.z = static_cast<char*>(args.scale.z) +",
          "args.scale.z = static_cast<char*>(args.scale.z) + 0 *", f"{HIGH} -k scaled"),
    _csrc("kept-mask-without-rows", "cpu/kept_body.h", "a.mask + m * a.mask_row", "a.mask", f"{HIGH} -k shrink"),
    _csrc("norm-blocks-at-the-start", "cpu/dora_norm.cpp", "n += step, args.norm += step", "n += step",
          "tests/ops/test_dora_norm.py"),
    _csrc("norm-tail-lost", "cpu/dora_norm_body.h", "if (k < last) {", "if (k + W < last) {", agrees("dora_norm")),
]  # fmt: skip

DECODING = "tests/ops/test_cpu_decoding.py"
FORMATS = f"{EVERY} -k 'every_format and cpu and (dequantize or lora_linear or lora_dx)'"
CODES = [
    _csrc("codes-nibbles-swapped", "cpu/frozen/codes.h", "c.data[e / 2] & 15 : c.data[e / 2] >> 4",
          "c.data[e / 2] >> 4 : c.data[e / 2] & 15", FORMATS),
    _csrc("codes-wrong-table-entry", "cpu/frozen/frozen.cpp", "-0.09105003625154495f", "-0.08105003625154495f",
          FORMATS),
    _csrc("codes-absmax-of-the-neighbour", "cpu/frozen/codes.h", "scale_of_block(c, (n * c.K + k) >> c.shift)",
          "scale_of_block(c, ((n * c.K + k) >> c.shift) + 1)", FORMATS),
    _csrc("codes-nested-offset-dropped", "cpu/frozen/codes.h", "c.nested_shift] + c.offset", "c.nested_shift]",
          FORMATS),
    _csrc("codes-block-ends-late", "cpu/frozen/codes.h", "(((at >> c.shift) + 1) << c.shift)",
          "(((at >> c.shift) + 2) << c.shift)", FORMATS),
    _csrc("codes-int8-over-128", "cpu/frozen/codes.h", "(1.0f / 127.0f)", "(1.0f / 128.0f)", FORMATS),
    _csrc("codes-fp8-subnormals-doubled", "cpu/frozen/codes.h", "(1.0f / 512.0f)", "(1.0f / 256.0f)",
          "tests/frozen/test_quantize.py -k every_byte"),
    _csrc("codes-odd-lanes-not-shifted", "cpu/frozen/codes.h", "{4, 0, 4, 0,", "{4, 4, 4, 0,", FORMATS, needs=AVX512),
    _csrc("few-rows-scale-of-the-first-group", "cpu/product/decoded_dots_body.h", "last > group && i < count",
          "last > group && i < 0", FEW_ROWS, needs="avx512"),
    _csrc("few-rows-blocks-after-the-sixteenth", "cpu/product/decoded_dots_body.h", "(n + j) * c.K + chunk) >> c.shift",
          "(n + j) * c.K) >> c.shift", FEW_ROWS, needs="avx512"),
    _csrc("few-rows-overflow-before-the-scale", "cpu/product/few_rows_body.h", "a.spread && !are_finite(sum)", "false",
          f"{FEW_ROWS} -k large", needs="avx512"),
    _csrc("few-rows-nan-of-fp8", "cpu/frozen/codes.h", "magnitude == 0x7F ? H{} + 0x7E00 : ", "",
          f"{FEW_ROWS} -k every_byte", needs="avx512"),
    _csrc("few-rows-one-row-of-fp8-scales", "cpu/product/decoded_dots_body.h", "* c.scales_across", "* 1", FEW_ROWS,
          needs="avx512"),
    _csrc("few-rows-order-of-the-codes", "cpu/product/few_rows.cpp", "k % 2 * 16 + k % 32 / 2", "k % 32", FORMATS,
          needs=AVX512),
    _csrc("gemm-pairs-exchanged", "cpu/product/panel_body.h", "(__m512)odd, (__m512)even", "(__m512)even, (__m512)odd",
          FORMATS, needs=BF16),
    _csrc("gemm-pair-past-the-last-row", "cpu/product/panel_body.h", "n + 1 < c.N ?", "true ?",
          "tests/ops/test_lora_dx.py -k follows_the_codes", needs=BF16),
    _csrc("gemm-two-rows-exchanged", "cpu/product/panel_body.h", "l / 2 % 2 * 32 + l % 2 * 16",
          "l / 2 % 2 * 32 + (l + 1) % 2 * 16", FORMATS, needs=BF16),
    _csrc("gemm-two-rows-one-scale", "cpu/product/panel_body.h", "its = F{} + scale_at(c, n + 1, k)",
          "its = F{} + scale_at(c, n, k)", FORMATS, needs=BF16),
    _csrc("gemm-two-rows-past-a-block", "cpu/product/panel_body.h", "scale_end(c, n, k) < k + 2 * W || ", "", DECODING,
          needs=BF16),
    _csrc("gemm-row-past-a-block", "cpu/product/panel_body.h", "i < rows && (at & in_block) + 2 * W <= in_block + 1",
          "i < rows", DECODING, needs=BF16),
    _csrc("gemm-row-of-odd-codes", "cpu/product/panel_body.h", "c.K % 2 == 0 && k % 2 == 0 && k + 2 * W", "k + 2 * W",
          DECODING, needs=BF16),
    _csrc("gemm-row-past-the-columns", "cpu/product/panel_body.h", "k % 2 == 0 && k + 2 * W <= c.K;", "k % 2 == 0;",
          DECODING, needs=BF16,
          equivalent="units past the last column are not stored; the read behind the codes is for make test-asan"),
    _csrc("gemm-two-rows-past-the-last-row", "cpu/product/panel_body.h", "n + 1 >= c.N || at % 2", "at % 2",
          "tests/ops/test_lora_dx.py -k follows_the_codes", needs=BF16),
    _csrc("vendor-decodes-the-first-block", "cpu/product/vendor.cpp", "b.transposed ? n : 0, sizes[0]",
          "0, sizes[0]", FORMATS),
    _csrc("vendor-bias-of-the-first-block", "cpu/product/vendor.cpp", "stride, n * bias->stride(0), &its",
          "stride, 0, &its", FORMATS),
]  # fmt: skip

FORWARD, BACKWARD = "tests/ops/test_multi_lora_forward.py", "tests/ops/test_multi_lora_backward.py"
SEGMENTS = [
    _csrc("segments-neighbours-adapter", "cpu/segments/shrink_body.h", "a.adapters[block.adapter];",
          "a.adapters[block.adapter > 0 ? block.adapter - 1 : 0];", FORWARD),
    _csrc("segments-scaling-of-the-neighbour", "cpu/multi_lora_forward.cpp", "scalings[a]), false",
          "scalings[(a + 1) % n]), false", FORWARD),
    _csrc("segments-block-starts-a-row-late", "cpu/segments/segments.cpp", "{all.adapter, all.first + i, std",
          "{all.adapter, all.first + i + (i > 0), std", FORWARD),
    _csrc("segments-block-loses-its-last-row", "cpu/segments/segments.cpp", "std::min(most, all.count - i)",
          "std::min(most, all.count - i) - (i > 0)", FORWARD, BACKWARD),
    _csrc("segments-seed-of-the-first", "cpu/multi_lora_forward.cpp", "its[static_cast<int64_t>(a) * seeds->stride(0)]",
          "its[0]", FORWARD),
    _csrc("segments-mask-of-the-row-before", "cpu/segments/shrink_body.h", "(uint64_t)m * a.mask_row,",
          "(uint64_t)(m - 1) * a.mask_row,", FORWARD),
    _csrc("segments-index-one-past-the-last", "cpu/segments/segments.cpp", "of[m * step] < n)",
          "of[m * step] <= n)", FORWARD),
    _csrc("segments-few-rows-read-the-next-rank", "cpu/segments/up_body.h", "width == W ? ~0u : (1u << width) - 1",
          "~0u", FORWARD),
    _csrc("segments-order-of-the-sums", "cpu/segments/up_body.h", "l % (W / R) * R + l / (W / R)", "l", FORWARD),
    _csrc("segments-adapter-without-rows", "cpu/segments/gradient_body.h", "if (block.count == 0)", "if (false)",
          BACKWARD),
    _csrc("segments-gradient-of-one-tile", "cpu/segments/gradient_body.h", "GRADIENT_COLUMNS, i > 0)",
          "GRADIENT_COLUMNS, false)", BACKWARD),
    _csrc("segments-dropped-unscaled", "cpu/multi_lora_backward.cpp", "kept.push_back(dropout_scale(ps[a]))",
          "kept.push_back(1)", BACKWARD),
]  # fmt: skip

HOLDS = "tests/test_op.py -k all_hold"
TABLE = "tests/ops/test_adapter_table.py"
TABLES = [
    _csrc("table-of-any-dtype", "cpu/segments/adapter_table.cpp", "t.scalar_type() == then.dtype", "true", TABLE),
    _csrc("table-of-other-memory", "cpu/segments/adapter_table.cpp", "t.const_data_ptr() == then.data", "true", TABLE),
    _csrc("table-of-A-alone-holds", "cpu/segments/adapter_table.cpp", "{&table->A, &table->B}", "{&table->A}", TABLE),
    _csrc("table-is-never-released", "cpu/segments/adapter_table.cpp", "tables().kept.erase(number);", "", TABLE),
    _csrc("table-of-the-latest", "cpu/segments/adapter_table.cpp", "tables().kept.find(number)",
          "tables().kept.find(tables().last_number)", TABLE),
    _csrc("table-adapters-exchanged", "cpu/multi_lora_forward.cpp", "kept->scalings, kept->ps",
          "kept->ps, kept->scalings", TABLE),
    _csrc("segments-strips-too-narrow", "cpu/segments/add.cpp", "round_up(ceil_div(args.N, args.across), 32)",
          "std::max<int64_t>(32, args.N / args.across / 32 * 32)", TABLE),
    _csrc("segments-next-strip-in-place-of-this", "cpu/segments/add_body.h", "add_strip<T, P>(a, task, next",
          "add_strip<T, P>(a, add_task<P>(a, t + 1 < end ? t + 1 : t), next", TABLE),
    _csrc("segments-no-columns", "cpu/segments/add.cpp", "if (args.N == 0) return;", "", TABLE),
]  # fmt: skip

MODULE = [
    _csrc("all-hold-absent-is-none", "module.cpp", "(value ? value : absent)", "(value ? value : Py_None)", HOLDS),
    _csrc("all-hold-types-of-any-kind", "module.cpp", "(PyObject*)Py_TYPE(object) != type", "object == absent", HOLDS),
    _csrc("all-hold-last-item", "module.cpp", "for (Py_ssize_t i = 0; i < n;", "for (Py_ssize_t i = 1; i < n;",
          HOLDS),
    _csrc("all-hold-keys-too-short", "module.cpp", "PyList_Size(keys) != n || ", "", HOLDS),
]  # fmt: skip

MUTATIONS = [*MODULE, *TABLES, *SEGMENTS, *CODES, *VENDOR, *SIMD, *DROPOUT, *LOW_RANK, *GEMM, *COLUMNS]
