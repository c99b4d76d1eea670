"""The default length of a training run.

A choice from few runs of LoRA on SmolLM2-135M: `python -m bench.defaults` makes more of them. The adapter of the
lowest held-out loss is what a run keeps, so that a few epochs too many cost time only.
"""

BATCH = 4
PASSES = 400  # examples seen in all, where there are few
LEAST, MOST = 3, 10  # epochs


def schedule(examples: int) -> dict:
    """{epochs, batch_size, gradient_accumulation} for so many examples."""
    epochs = min(max(round(PASSES / max(examples, 1)), LEAST), MOST)
    return {"epochs": float(epochs), "batch_size": BATCH, "gradient_accumulation": 1}
