"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: python -m tests.sanitizers.asan

First the sanitizers must report each of three planted faults. Then the tests of the kernels run on every instruction
set of this CPU. Arguments are passed to pytest.
"""

import os
import sys

from tests.sanitizers import build

FLAGS = [*build.DEBUG, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TESTS = ["tests/ops", "tests/autograd", "tests/nn"]
# PYPEFT_FAST_CPU selects the instruction set. test_cpu_isa.py runs on all instruction sets, and is run separately.
# test_philox_stream.py compiles a library of its own, without a sanitizer, from the files at the root.
CHOICE = "(cpu or autograd or nn) and not test_cpu_isa and not test_philox_stream and not triton_compiles"

PLANTS = {
    build.Plant(
        "write-past-the-end",
        "cpu/product/scale_columns_body.h",
        "cpu/product/scale_columns.cpp",
        "narrow((P*)a.dl + n, sum, at_most(W, a.N - n));",
        "narrow((P*)a.dl + n, sum, W);",
    ): "heap-buffer-overflow.*WRITE of size.*scale_columns_body.h",
    build.Plant(
        "read-past-the-end",
        "cpu/product/scale_columns_body.h",
        "cpu/product/scale_columns.cpp",
        "widen(a.ia3_l + n, columns)",
        "load(a.ia3_l + n)",
    ): "heap-buffer-overflow.*READ of size.*scale_columns_body.h",
    build.Plant(
        "shift-by-the-width",
        "cpu/philox_body.h",
        "cpu/lora_shrink.cpp",
        "(uint32_t)((uint64_t)seed >> 32)",
        "(uint32_t)((uint32_t)seed >> 32)",
    ): "philox_body.h.*runtime error: shift exponent 32 is too large",
}

# 17 is not a multiple of the width of any vector.
PROBE = """
import torch, pypeft_fast as pf
from pypeft_fast._op import OPS
with pf.using("cpu"):
    OPS["ia3_dx_dl"](torch.ones(3, 17), torch.ones(17, 8), torch.ones(17), torch.ones(3, 17), False, True, True)
    OPS["lora_shrink"](torch.ones(3, 17), torch.ones(2, 17), 0.5, torch.tensor([1]))
"""


def environment(isa):
    return {
        "PYPEFT_FAST_CPU": isa,
        # libstdc++ is preloaded too, because the sanitizer wraps its __cxa_throw.
        "LD_PRELOAD": build.runtime("libasan.so", "libstdc++.so"),
        # With detect_stack_use_after_return gcc 12 aligns local vectors of 64 bytes to 32 bytes, and the code crashes.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def main(arguments):
    made = build.objects("asan", FLAGS)
    clean = build.tree("asan", FLAGS, made)
    isas = build.instruction_sets(clean, environment)
    build.expect_silence(build.execute(clean, ["-c", PROBE], environment(isas[0])), "the probe without a fault")
    for plant, report in PLANTS.items():
        planted = build.tree("asan", FLAGS, made, plant)
        build.expect_report(build.execute(planted, ["-c", PROBE], environment(isas[0])), plant, report)
    # --capture=sys does not replace the file descriptor of stderr, so that a report is seen when the process ends.
    pytest = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-m", "not slow"]
    for isa in isas:
        print(f"The tests on {isa}", flush=True)
        done = build.execute(clean, [*pytest, "-k", CHOICE, *TESTS, *arguments], environment(isa), capture=False)
        build.expect_silence(done, f"the tests on {isa}")
    print("The tests of every instruction set", flush=True)
    done = build.execute(clean, [*pytest, "tests/ops/test_cpu_isa.py"], environment(""), capture=False)
    build.expect_silence(done, "tests/ops/test_cpu_isa.py")
    print(f"No fault on {', '.join(isas)}; the planted ones were found.")


if __name__ == "__main__":
    os.chdir(build.ROOT)
    main(sys.argv[1:])
