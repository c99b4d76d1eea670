"""One forward and one backward pass for the batches of several adapters.

Each row of the batch has the adapter of its own; the loss is the sum of the adapters' losses, each the mean over its
own tokens. A row's logits depend on its own adapter only, so an adapter gets the gradients of its loss alone.
"""

from dataclasses import dataclass

import torch

from ..data.tokens import Collator
from ..errors import as_user_error


@dataclass(frozen=True)
class Step:
    """One adapter's part of a step: the batches whose gradients add up, and how many tokens the loss is the mean of;
    None where the model takes no such number: the loss is the mean over the batches then."""

    adapter: str
    batches: list[dict[str, torch.Tensor]]
    tokens: torch.Tensor | None


def names_of_rows(parts: list[tuple[Step, dict[str, torch.Tensor]]]) -> list[str]:
    """The adapter of each row of these batches in a row."""
    return [step.adapter for step, batch in parts for _ in range(len(batch["labels"]))]


def backward(model, collator: Collator, steps: list[Step]) -> list[float]:
    """Adds the gradients of a step of each adapter to its parameters; returns their losses.

    The first batches of all adapters are one batch of the model, then the second ones. UserError if this model cannot
    apply another adapter to each row.
    """
    losses = torch.zeros(len(steps))
    for number in range(max(len(step.batches) for step in steps)):
        here = [i for i, step in enumerate(steps) if number < len(step.batches)]
        parts = [(steps[i], steps[i].batches[number]) for i in here]
        batch = collator.together([batch for _, batch in parts])
        labels = batch.pop("labels")
        model.train()
        refused = "this model cannot train several adapters in one batch; give one `data` in a run"
        with as_user_error(refused, (ValueError,)):
            logits = model(**batch, adapter_names=names_of_rows(parts)).logits
        sizes = [len(batch["labels"]) for _, batch in parts]
        loss_of = model.get_base_model().loss_function
        parts = zip(parts, logits.split(sizes), labels.split(sizes), strict=True)
        found = [_loss(loss_of, step, logits, labels) for (step, _), logits, labels in parts]
        torch.stack(found).sum().backward()
        losses[here] += torch.stack(found).detach().float().cpu()
    return losses.tolist()


def _loss(loss_of, step: Step, logits, labels):
    """Of one adapter's rows, as Trainer computes it: a part of the mean over all tokens of the step."""
    loss = loss_of(logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=step.tokens)
    return loss if step.tokens is not None else loss / len(step.batches)
