"""The C++ kernels under ThreadSanitizer: python -m tests.sanitizers.tsan

First two planted races, which must be reported; then forward and backward on several threads (steps.py), on every
instruction set that this CPU has. The library is the usual one but for its parallel loops, which run on the threads of
parallel_for.cpp: the sanitizer must see how threads start and end, and PyTorch's own are hidden from it.
"""

import os

from tests.sanitizers import build

FLAGS = [*build.DEBUG, "-fsanitize=thread", "-Dtorch_parallel_for=pypeft_sanitizer_parallel_for"]
STAND_IN = "tests/sanitizers/parallel_for.cpp"
SCENES = [(1, 4), (4, 1), (3, 4)]  # Python threads, and threads of each one's loops

# One scratch for all threads: a race between the threads of one loop, and between callers on one thread each.
SHARED_SCRATCH = build.Plant(
    "shared-scratch",
    "cpu/lora_da.cpp",
    "cpu/lora_da.cpp",
    "const Floats sums(",
    "static const Floats sums(",
)
# Written by every caller without a lock (volatile, or the compiler drops the store): a race between callers only.
UNLOCKED_CHOICE = build.Plant(
    "unlocked-choice",
    "cpu/isa/select.cpp",
    "cpu/isa/select.cpp",
    "  static const Isa isa = choose();\n  return isa;",
    "  static volatile Isa isa;\n  isa = choose();\n  return isa;",
)
PLANTS = [
    (SHARED_SCRATCH, [(1, 4), (4, 1)], "data race.*lora_da"),
    (UNLOCKED_CHOICE, [(4, 1)], "data race.*select.cpp"),
]


def environment(isa):
    # Accesses of libraries that were compiled without the sanitizer are not judged; their locks and threads count.
    options = "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"
    return {"PYPEFT_FAST_CPU": isa, "LD_PRELOAD": build.runtime("libtsan.so"), "TSAN_OPTIONS": options}


def steps(folder, isa, scene):
    """A run; another one, up to five, where the runtime itself cannot place its shadow memory, which luck decides."""
    for _ in range(5):
        done = build.execute(folder, ["-m", "tests.sanitizers.steps", *map(str, scene)], environment(isa))
        if "ThreadSanitizer failed to allocate" not in done.reports + done.output:
            break
    return done


def main():
    made = build.objects("tsan", FLAGS, [STAND_IN])
    clean = build.tree("tsan", FLAGS, made)
    isas = build.instruction_sets(clean, environment)
    for plant, scenes, report in PLANTS:
        planted = build.tree("tsan", FLAGS, made, plant)
        for scene in scenes:
            build.expect_report(steps(planted, isas[0], scene), plant, report)
    for isa in isas:
        for scene in SCENES:
            done = steps(clean, isa, scene)
            build.expect_silence(done, f"{scene[0]} callers of {scene[1]} threads on {isa}")
            print(f"{isa}: {done.output.strip()}", flush=True)
    print(f"No race on {', '.join(isas)}; the planted ones were found.")


if __name__ == "__main__":
    os.chdir(build.ROOT)
    main()
