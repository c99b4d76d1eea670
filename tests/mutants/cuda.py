"""Mutations of the CUDA kernels. The tests run these kernels on the emulator."""

from .mutation import Mutation

QUANTIZED = "tests/emulator/test_quantized.py"
OPS = "tests/emulator/test_ops.py"
KERNELS = "tests/emulator/test_kernels.py"
SEGMENTS = "tests/emulator/test_segments.py"
COMPOSED = "tests/emulator/test_composed.py"


def _shared(name, file, old, new, *tests):
    """A mutation of a header that the kernels for CPUs include too."""
    return Mutation(f"cuda-{name}", f"csrc/{file}", old, new, tests)


def _cuda(name, file, old, new, *tests, **options):
    return Mutation(f"cuda-{name}", f"csrc/cuda/{file}", old, new, tests, **options)


MUTATIONS = [
    _cuda("codes-wrong-table-entry", "frozen/decode.cuh", "0.16093020141124725f", "0.15093020141124725f",
          f"{QUANTIZED} -k 'dequantised_in_one_launch and nf4'"),
    _cuda("codes-nibbles-swapped", "frozen/decode.cuh", "(i % 2 ? 0 : 4)", "(i % 2 ? 4 : 0)",
          f"{QUANTIZED} -k dequantised_in_one_launch"),
    _cuda("codes-no-nested-offset", "frozen/decode.cuh", " + load_global<float>(c.offset);", ";",
          f"{QUANTIZED} -k dequantised_in_one_launch"),
    _cuda("codes-absmax-of-the-neighbour", "dequantize.cu", "four_bit_scale(c, at >> c.shift)",
          "four_bit_scale(c, (at >> c.shift) - (at >= 1 << c.shift))", f"{QUANTIZED} -k dequantised_in_one_launch"),
    _cuda("product-absmax-of-the-neighbour", "product/decode_codes.cu", "four_bit_scale(codes, at >> codes.shift)",
          "four_bit_scale(codes, (at >> codes.shift) - (at >= 1 << codes.shift))",
          f"{QUANTIZED} -k multiplied_with_the_codes"),
    _cuda("product-last-part-lost", "product/decode_codes.cu", "first >= p.X.cols", "first + kPart > p.X.cols",
          f"{QUANTIZED} -k multiplied_with_the_codes"),
    _cuda("product-codes-of-the-first-row", "product/decode_codes.cu", "codes.data + at / 2", "codes.data + k / 2",
          f"{QUANTIZED} -k multiplied_with_the_codes"),
    _cuda("fp8-exponent", "frozen/decode.cuh", "* 256.0f", "* 128.0f", f"{QUANTIZED} -k every_byte"),
    _cuda("int8-not-over-127", "dequantize.cu", "(1.0f / 127.0f)", "(1.0f / 128.0f)",
          f"{QUANTIZED} -k 'dequantised_in_one_launch and int8'"),
    _cuda("threshold-carry", "device/dropout.cuh", "((rest & 0x7FFF) + 1)", "(rest & 0x7FFF)",
          f"{OPS} -k lanes_that_reach_the_threshold"),
    _cuda("mask-halves-exchanged", "device/dropout.cuh", "0x00020001u << 2 * j", "0x00010002u << 2 * j",
          f"{OPS} -k lanes_that_reach_the_threshold"),
    _cuda("mask-of-the-first-word", "device/dropout.cuh", "spread << (15 - 2 * j)", "spread << 15",
          f"{OPS} -k 'agrees and lora_da'"),
    _cuda("parts-without-the-last", "device/parts.cuh", "Products::mma(c[1], a, b[2]);", "",
          f"{KERNELS} -k 24_bits"),
    _cuda("parts-small-sum-not-finite", "device/parts.cuh", "c[1][i] == c[1][i] ? c[1][i] : 0.0f", "c[1][i]",
          f"{KERNELS} -k not_finite_in_parts"),
    _cuda("parts-one-tile-for-two-steps", "device/adapter_tiles.cuh", "memory + step % 2", "memory + step % 1",
          f"{KERNELS} -k sums_over_many_blocks"),
    _cuda("low-rank-beyond-the-last-rank", "device/ahead.cuh", "i < m.rows && j < m.cols ?", "i < m.rows ?",
          f"{KERNELS} -k large_and_small"),
    _cuda("parts-beyond-the-last-rank", "device/adapter_tiles.cuh", "i < m.rows && j < m.cols ? load_global",
          "j < m.cols ? load_global", f"{KERNELS} -k sums_over_many_blocks"),
    _cuda("product-large-tiles-of-any-strides", "product/gemm_kernels.cuh", "large && takes_vectors<kScale>(p) ?",
          "large ?", f"{KERNELS} -k misaligned_pointer"),
    _cuda("product-part-of-the-first-tile", "product/epilogue.cuh", "computed_here(m0) / S::kM",
          "computed_here(m0) / (2 * S::kM)", f"{KERNELS} -k large_and_small"),
    _cuda("decode-waits-for-no-launch", "product/decode.cuh", "wait_for_launch_before();", "",
          f"{COMPOSED} -k decoding_overlaps"),
    _cuda("decode-s-before-the-wait", "product/decode.cuh", "if (!p.low_rank.overlaps) load_S(0);", "load_S(0);",
          f"{COMPOSED} -k decoding_overlaps"),
    _cuda("decode-overlaps-with-dequantising", "lora_linear.cu", "weight.give(on, args, x);",
          "weight.give(on, args, x) && false;",
          f"{COMPOSED} -k decoding_overlaps"),
    _cuda("shrink-allows-no-launch", "lora_shrink.cu", "allow_next_launch();", "", f"{COMPOSED} -k decoding_overlaps"),
    _cuda("decode-overlaps-in-older-code", "device/launch.cu", "attributes.ptxVersion >= 90 &&", "",
          f"{COMPOSED} -k under_cuda_12_3"),
    _cuda("segments-adapter-of-the-neighbour", "segments/adapters.h", "static_cast<int>(adapter) : -1",
          "static_cast<int>((adapter + 1) % count) : -1", f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-row-off-by-one", "segments/adapters.h", "index + m * index_stride",
          "index + (m > 0 ? m - 1 : m) * index_stride", f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-scaling-of-the-neighbour", "product/decode_low_rank.cuh", "p.factors[adapter]",
          "p.factors[(adapter + 1) % p.count]", f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-B-of-the-next-column", "product/decode_low_rank.cuh", "n(n0 + col)", "n(n0 + (col ^ 1))",
          f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-only-the-held-ranks", "product/decode_low_rank.cuh", "for (; r < ranks; r += per)",
          "for (; false; r += per)", f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-s-beyond-the-rank", "segments/shrink.cu", "r < rank ? total : 0.0f", "total",
          f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("segments-last-columns-of-x-lost", "segments/shrink.cu", "k < x.cols; k", "k + kPiece < x.cols; k",
          f"{SEGMENTS} -k any_number_of_adapters"),
    _cuda("composed-ds-for-dx-only", "lora_backward.cu", "need_dX || need_dA, need_dB", "need_dX, need_dB",
          f"{COMPOSED} -k not_needed"),
    _cuda("composed-forward-without-tf32", "lora_forward.cu", "nullptr, allow_tf32, y", "nullptr, false, y",
          f"{COMPOSED} -k tf32"),
    _cuda("composed-backward-without-tf32", "lora_backward.cu", "mask, p, allow_tf32))", "mask, p, false))",
          f"{COMPOSED} -k tf32"),
    _shared("check-ranks-that-differ", "lora_fits.h", "lora_B.size(1) == r && is_adapter(lora_A, x)",
            "is_adapter(lora_A, x)", f"{COMPOSED} -k 'refuses and python'"),
    _shared("check-any-number-of-codes", "stored.h", " && weight.numel() == ceil_div(weights, 2));", ");",
            f"{COMPOSED} -k refuses"),
    _shared("check-any-nested-blocks", "stored.h", "fits(scales[1].numel() == ceil_div(", "fits(0 < ceil_div(",
            f"{COMPOSED} -k refuses"),
    _cuda("segments-a-number-that-no-adapter-has", "segments/adapters.h", "&& adapter < count ?", "?",
          f"{SEGMENTS} -k counts_as_no_adapter"),
]  # fmt: skip
