"""The options of `pypeft-fast finetune` for the schedule of the learning rate and for the optimizer."""

from ..finetune.training.settings import OPTIMIZERS, SCHEDULES, Settings
from .option_values import not_negative, warmup


def add_optimization(parser) -> None:
    """Adds the options that Trainer calls lr_scheduler_type, warmup_steps, optim, weight_decay and max_grad_norm."""
    add = parser.add_argument
    add(
        "--schedule",
        choices=SCHEDULES,
        default=Settings.schedule,
        help="how the learning rate changes over the run (default: %(default)s, which decays to 0)",
    )
    add(
        "--warmup",
        type=warmup,
        metavar="X",
        help=f"the learning rate rises from 0 over this fraction of the steps, or from 1 on, over this number of steps "
        f"(default: {Settings.warmup:g}; 0 for the schedule constant)",
    )
    add("--optimizer", choices=OPTIMIZERS, default=Settings.optimizer, help="(default: %(default)s)")
    add(
        "--weight-decay",
        type=not_negative,
        metavar="X",
        default=Settings.weight_decay,
        help="each step shrinks the adapter's weights by this times the learning rate (default: 0)",
    )
    add(
        "--max-grad-norm",
        type=not_negative,
        metavar="X",
        default=Settings.max_grad_norm,
        help="gradients with a larger norm are scaled down to it; 0: never (default: 1)",
    )
