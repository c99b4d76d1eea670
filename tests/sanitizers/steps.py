"""Forward and backward through the C++ kernels on several threads: python -m tests.sanitizers.steps CALLERS THREADS

CALLERS Python threads run training steps concurrently, with the parallel loops of the library on THREADS threads. All
share the frozen weights. Every result must equal that of one thread, to within the rounding of the vendor's products.
"""

import ctypes
import sys
import threading

import torch

import pypeft_fast as pf
from pypeft_fast import _native

F32, BF16 = torch.float32, torch.bfloat16
# These sizes select the package's product of many rows, the vendor's product, and the package's product of few rows.
CASES = [
    (3, 4100, 600, 16, F32),
    (2, 4100, 600, 16, BF16),
    (300, 520, 401, 16, F32),
    (70, 1100, 300, 8, BF16),
    (9, 130, 67, 3, F32),
    (40, 300, 257, 5, torch.float16),
]


def problem(M, K, N, r, dtype):
    torch.manual_seed(M)
    frozen = torch.randn(N, K).to(dtype), torch.randn(N).to(dtype)
    return frozen, [torch.randn(size).to(dtype) for size in ((M, K), (r, K), (N, r), (N,), (M, N))]


def step(frozen, values):
    """The results of one LoRA layer, one IA3 layer, one LoRA layer with an activation before it and one DoRA layer."""
    (weight, bias), dY = frozen, values[-1]
    x, A, B, scale = leaves = [value.clone().requires_grad_() for value in values[:-1]]
    generator = torch.Generator().manual_seed(7)
    y = pf.lora_linear(x, weight, A, B, bias, scaling=0.5, dropout_p=0.3, generator=generator)
    z = pf.ia3_linear(x, weight, scale, bias)
    u = pf.lora_gated_linear(x, x, weight, A, B, bias, scaling=0.5)
    d = pf.dora_linear(x, weight, A, B, scale, bias, scaling=0.5)
    outputs = [y, z, u, d]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, [dY] * len(outputs))]


def close(a, b):
    return bool((a.double() - b.double()).abs().max() <= 4 * torch.finfo(b.dtype).eps * b.double().abs().max())


def main(callers, threads):
    problems = [problem(*case) for case in CASES]
    wrong = []
    start = threading.Barrier(callers)

    def caller(expected):
        torch.set_num_threads(threads)
        start.wait()
        for _ in range(2):
            for given, truth in zip(problems, expected, strict=True):
                wrong.extend(1 for a, b in zip(step(*given), truth, strict=True) if not close(a, b))

    with pf.using("cpu"):
        torch.set_num_threads(1)
        expected = [step(*given) for given in problems]
        running = [threading.Thread(target=caller, args=(expected,)) for _ in range(callers)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    chunks = ctypes.CDLL(str(_native.LIBRARY_PATH)).pypeft_sanitizer_chunks
    chunks.restype = ctypes.c_int64
    if wrong or bool(chunks()) != (threads > 1):
        raise SystemExit(f"{len(wrong)} tensors differ from those of one thread; {chunks()} chunks ran on threads")
    print(f"{callers} callers of {threads} threads: {chunks()} chunks", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
