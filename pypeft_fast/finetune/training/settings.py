"""The settings of a run."""

import math
from dataclasses import dataclass

# By default a checkpoint is written every epoch, but at least LEAST and at most MOST steps apart.
LEAST, MOST = 10, 200
# Names of transformers' Trainer. Other schedules need further values, other optimizers further packages.
SCHEDULES = (
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adafactor", "adagrad", "rmsprop", "sgd")


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `resume` requires equal settings, since data order and learning rate depend on them."""

    model: str
    data: str
    product: str | None = None  # only the examples of this product
    method: str = "lora"
    rank: int | None = 16  # None: the method does not have this option
    alpha: float | None = 32
    dropout: float | None = 0.05
    target_modules: str | list[str] | None = "all-linear"
    reduction_factor: float | None = None
    virtual_tokens: int | None = None
    adapter: str | None = None  # the folder of an adapter to train further, instead of a new adapter
    epochs: float = 3
    max_steps: int | None = None  # replaces epochs
    batch_size: int = 4
    gradient_accumulation: int = 1
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05  # below 1: a fraction of the steps, rounded down; else a number of steps
    optimizer: str = "adamw_torch_fused"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: gradients are not clipped
    max_length: int = 512
    packing: bool = False  # whether a row has several examples, of at most max_length tokens together
    dtype: str = "float32"
    quantize: str | None = None  # the format in which the base model's linear layers are stored
    eval_data: str | None = None  # held-out data, instead of a part of `data`
    eval_fraction: float = 0.1
    patience: int | None = None  # training ends after this number of evaluations without a lower loss
    seed: int = 0
    save_every: int | None = None  # steps between checkpoints and evaluations; 0: neither; None: see checkpoint_steps
    gradient_checkpointing: bool = False
    chat_template: str | None = None  # the file of a template to use instead of the tokenizer's

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps in one epoch over this number of rows: packed rows, or examples."""
        return math.ceil(math.ceil(rows / self.batch_size) / self.gradient_accumulation)

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole run on this number of rows."""
        return self.max_steps or math.ceil(self.epochs * self.steps_per_epoch(rows))

    def warmup_steps(self, rows: int) -> int:
        """Steps in which the learning rate rises from 0; the first of them has the learning rate 0."""
        if self.warmup >= 1:
            return int(self.warmup)
        return math.floor(self.warmup * self.steps(rows) + 1e-9)  # 0.29 * 100 is below 29 in floating point

    def checkpoint_steps(self, rows: int) -> int:
        """Steps between checkpoints; at each checkpoint the held-out loss is evaluated. 0: no checkpoints."""
        if self.save_every is not None:
            return self.save_every
        return min(max(self.steps_per_epoch(rows), LEAST), MOST)
