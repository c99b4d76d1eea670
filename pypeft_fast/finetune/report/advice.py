"""Sentences about a run: shortened data, too few steps, an unusual learning rate, too few held-out examples, and a loss
that did not fall."""

from ..adapters.methods import METHODS

FEW_STEPS = 20
FEW_HELD_OUT = 5
# Learning rates without a warning. AdamW changes a parameter by about the rate per step. Below the first rate, a
# thousand steps change a parameter by less than a thousandth. Above the second rate, ten steps change a parameter by
# more than its typical value.
RATES = (1e-6, 1e-1)
SAME = 1e-4  # relative: losses that differ by less differ only by rounding


def shortened(data, max_length: int) -> list[str]:
    """Sentences about the examples that `max_length` has cut or dropped."""
    every, lines = len(data.train) + len(data.held_out) + data.dropped, []
    if data.cut:
        lines.append(f"{data.cut} of {every} examples cut at {max_length} tokens (longest {data.longest})")
    if data.dropped:
        lines.append(f"{data.dropped} of {every} examples left out: `max_length` {max_length} ends before their answer")
    return lines


def before_training(settings, data) -> list[str]:
    """Warnings about a run with too few steps, an unusual learning rate, or too few held-out examples."""
    lines, steps = [], settings.steps(len(data.rows))
    if steps < FEW_STEPS:
        few = "1 step, which teaches" if steps == 1 else f"{steps} steps, which teach"
        lines.append(f"warning: only {few} little; for more give `epochs` or `max_steps`")
    if not RATES[0] <= settings.learning_rate <= RATES[1]:
        usual = METHODS[settings.method].learning_rate
        lines.append(
            f"warning: a `learning_rate` of {settings.learning_rate:g} is outside {RATES[0]:g} to {RATES[1]:g}, where "
            f"adapters learn; usual for {settings.method} is {usual:g}"
        )
    if settings.chat_template and not data.has_ends:
        lines.append(
            "warning: the `chat_template` ends no answer with a special token of the tokenizer, so the model does not "
            "learn to end its answers; write eos_token after each answer"
        )
    if (warmup := settings.warmup_steps(len(data.rows))) >= steps:
        lines.append(
            f"warning: the `warmup` takes {warmup} steps and the run has {steps}, so the `learning_rate` is not reached"
        )
    if not data.held_out:
        lines.append("warning: nothing is held out, so nothing tells whether training helps")
    elif (few := len(data.held_out)) < FEW_HELD_OUT:
        proves = "held-out examples prove" if few > 1 else "held-out example proves"
        more = "give more in `eval_data`" if settings.eval_data else "for more give `eval_fraction` or `eval_data`"
        lines.append(f"warning: {few} {proves} little; {more}")
    return lines


def after_training(metrics: dict) -> list[str]:
    """The held-out loss before and after training, the step of the kept adapter, and warnings."""
    before, after = metrics["eval_loss_before"], metrics["eval_loss_after"]
    if before is None:
        return []
    lines = [f"loss on held-out data: {before:.3f} before, {after:.3f} after"]
    best, steps = metrics["best_step"], metrics["steps"]
    if metrics["stopped_early"]:
        lines.append(f"stopped after step {steps}: the held-out loss fell no more")
    if best is not None and best < steps:
        last = metrics["loss_history"]["held_out"][-1][1]
        lines.append(f"the adapter is that of step {best} of {steps}, the best one; at the end the loss was {last:.3f}")
    if after == before or abs(after - before) < SAME * before:
        lines.append("warning: the held-out loss stayed, so nothing was learned of new questions; give more steps")
    elif after > before:
        lines.append(
            "warning: the held-out loss rose, so this adapter answers new questions worse than before; give more data, "
            "a lower `learning_rate` or fewer `epochs`"
        )
    return lines
