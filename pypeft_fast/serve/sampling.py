"""Chooses the next token of each row: the most likely token, or a draw from the row's own distribution."""

from dataclasses import dataclass, field

import torch

NUCLEUS = 1024  # the tokens that top_p sorts first; if these have a smaller total probability, all tokens are sorted


@dataclass(frozen=True)
class Sampling:
    """How a row draws its tokens. temperature 0: always the most likely token.

    generator: of this row alone, so that a seed gives the same draws in any batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = field(default=None, compare=False)

    @classmethod
    def seeded(cls, temperature: float, top_p: float, seed: int | None) -> "Sampling":
        """Draws that follow from the seed; None: other draws each time."""
        if temperature == 0:
            return cls()
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed % 2**63)
        return cls(temperature, top_p, generator)


def next_tokens(logits: torch.Tensor, samplings: list[Sampling]) -> list[int | None]:
    """The next token of each row of logits [rows, vocabulary]; None for a row whose largest logit is not finite."""
    logits = logits.float().cpu()
    largest, tokens = logits.max(dim=-1)
    chosen = [token if ok else None for token, ok in zip(tokens.tolist(), largest.isfinite().tolist(), strict=True)]
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0 and chosen[row] is not None:
            chosen[row] = _draw((logits[row] - largest[row]).double() / sampling.temperature, sampling)
    return chosen


def _draw(scaled: torch.Tensor, sampling: Sampling) -> int:
    """A draw from softmax(scaled), restricted to the fewest most likely tokens with a total of at least top_p."""
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=sampling.generator))
    most, tokens = probabilities.topk(min(NUCLEUS, len(probabilities)))
    if float(most.sum()) < sampling.top_p:
        most, tokens = probabilities.sort(descending=True)
    before = most.cumsum(dim=-1) - most
    kept = most * (before < sampling.top_p)
    return int(tokens[torch.multinomial(kept, 1, generator=sampling.generator)])
