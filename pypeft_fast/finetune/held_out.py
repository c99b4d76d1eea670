"""The loss of a model on examples that it was not trained on."""

import torch
from torch.nn.functional import cross_entropy

from .data.tokens import IGNORE, Collator, Encoded


@torch.no_grad()
def held_out_loss(model, encoded: list[Encoded], collator: Collator, batch_size: int = 8) -> float | None:
    """Mean cross entropy in nats over all target tokens, in evaluation mode; None without target tokens."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = {k: v.to(model.device) for k, v in collator(encoded[start : start + batch_size]).items()}
        targets = int((batch["labels"][:, 1:] != IGNORE).sum())
        total += float(model(**batch).loss) * targets
        count += targets
    model.train(was_training)
    return total / count if count else None


@torch.no_grad()
def losses_by_example(
    model, encoded: list[Encoded], collator: Collator, batch_size: int = 8
) -> list[tuple[float, int]]:
    """[(cross entropy summed over the target tokens, in nats, their number)] of each example, in evaluation mode.

    The sum of the first numbers, divided by the sum of the second, is `held_out_loss`.
    """
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(encoded), batch_size):
        batch = {k: v.to(model.device) for k, v in collator(encoded[start : start + batch_size]).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
        found += zip(losses.sum(1).tolist(), (labels != IGNORE).sum(1).tolist(), strict=True)
    model.train(was_training)
    return found


def target_tokens(encoded: list[Encoded]) -> int:
    """The number of target tokens, over which the loss is the mean."""
    return sum(label != IGNORE for example in encoded for label in example.labels[1:])
