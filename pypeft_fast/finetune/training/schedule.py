"""The default length of a training run.

The defaults come from a small number of LoRA runs on SmolLM2-135M; `python -m bench.defaults` repeats such runs. A run
keeps the adapter with the lowest held-out loss, so a few epochs too many cost only time.
"""

BATCH = 4
PASSES = 400  # the number of examples seen over all epochs, for small data
LEAST, MOST = 3, 10  # epochs


def schedule(examples: int) -> dict:
    """{"epochs", "batch_size", "gradient_accumulation"} for this number of examples."""
    epochs = min(max(round(PASSES / max(examples, 1)), LEAST), MOST)
    return {"epochs": float(epochs), "batch_size": BATCH, "gradient_accumulation": 1}
