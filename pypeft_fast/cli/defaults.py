"""How long to train where the user does not say: measured on small sets, see `python -m bench.defaults`."""

BATCH = 4
PASSES = 800  # examples seen in all, where there are few
LEAST, MOST = 3, 12  # epochs


def schedule(examples: int) -> dict:
    """{epochs, batch_size, gradient_accumulation} for so many examples to train on."""
    epochs = min(max(round(PASSES / max(examples, 1)), LEAST), MOST)
    return {"epochs": float(epochs), "batch_size": BATCH, "gradient_accumulation": 1}
