"""The C++ kernels under ThreadSanitizer: python -m tests.sanitizers.tsan

First the sanitizer must report two planted races. Then forward and backward run on several threads (steps.py), on every
instruction set of this CPU. The parallel loops of the library run on the threads of parallel_for.cpp, because the
sanitizer must see the start and the end of threads, and cannot see those of PyTorch's threads.
"""

import os

from tests.sanitizers import build

FLAGS = [*build.DEBUG, "-fsanitize=thread", "-Dtorch_parallel_for=pypeft_sanitizer_parallel_for"]
STAND_IN = "tests/sanitizers/parallel_for.cpp"
SCENES = [(1, 4), (4, 1), (3, 4)]  # (number of Python threads, number of threads of each parallel loop)

# All threads share one temporary buffer: a race between the threads of one loop, and between callers.
SHARED_SCRATCH = build.Plant(
    "shared-scratch",
    "cpu/lora_da.cpp",
    "cpu/lora_da.cpp",
    "const Floats sums(",
    "static const Floats sums(",
)
# Every caller writes a variable without a lock: a race between callers only. Without volatile the compiler would remove
# the store.
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
    # Accesses in libraries without the sanitizer are not checked, but their locks and threads are taken into account.
    options = "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"
    return {"PYPEFT_FAST_CPU": isa, "LD_PRELOAD": build.runtime("libtsan.so"), "TSAN_OPTIONS": options}


def steps(folder, isa, scene):
    """Runs steps.py; up to five times, because ThreadSanitizer sometimes fails to allocate its shadow memory."""
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
