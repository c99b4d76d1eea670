"""The course of one adapter among several that train together: its batches, its optimizer, its evaluations.

What transformers.Trainer decides is taken from a Trainer of this adapter: the order of the examples, the optimizer, the
learning rates, the callbacks. So an adapter's course is that of a run of its own; only the forward and the backward
pass are shared, see together.py.
"""

import dataclasses
import itertools
from pathlib import Path

import torch
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from .ready_many import ReadyMany
from .train import make_trainer


class Course:
    """One adapter's training.

    A step is next_batches, then losses and gradients from outside, then update and report. `ended` is true after the
    last step.
    """

    def __init__(self, name: str, ready: ReadyMany, output: Path, callbacks=(), report_to=()):
        self.name, self.ready, self.run = name, ready, ready.runs[name]
        with ready.only(name):
            run = self.run
            given = ready.model, run.data, ready.collator, run.settings
            self.trainer = make_trainer(*given, output, callbacks, report_to)
            self.trainer.remove_callback(self.trainer.progress_bar)
            self.steps = run.settings.steps(len(run.data.rows))
            self.trainer.create_optimizer_and_scheduler(self.steps)
        # Right after the Trainer, whose seed PyTorch's generator has: the order of the examples follows from it.
        self._batches = self._all_batches(self.trainer.get_train_dataloader())
        self._best: dict[str, torch.Tensor] | None = None
        self._start()

    def _start(self):
        trainer, args = self.trainer, self.trainer.args
        trainer.state = TrainerState(max_steps=self.steps, logging_steps=1)
        trainer.state.eval_steps, trainer.state.save_steps = args.eval_steps, args.save_steps
        self._tell("on_train_begin")

    @property
    def ended(self) -> bool:
        return self.trainer.control.should_training_stop

    def next_batches(self) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
        """(the batches of the next step, how many tokens its loss is the mean of; None: the model does not take it)."""
        return next(self._batches)

    def _all_batches(self, loader):
        args = self.trainer.args
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            batches = iter(loader)
            while (step := self.trainer.get_batch_samples(batches, args.gradient_accumulation_steps, args.device))[0]:
                yield step

    def begin(self) -> None:
        """Tells the callbacks that a step begins."""
        self._tell("on_step_begin")

    def update(self) -> None:
        """Clips this adapter's gradients and makes a step of its optimizer and of its learning rate."""
        trainer, state = self.trainer, self.trainer.state
        if trainer.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.run.parameters.values(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.optimizer.zero_grad()
        state.global_step += 1
        state.epoch = state.global_step / self.run.settings.steps_per_epoch(len(self.run.data.rows))
        self._tell("on_step_end")

    def report(self, loss: float) -> None:
        """Logs the loss of a step that is done, and evaluates where it is time to. UserError if a loss is no number."""
        trainer, state = self.trainer, self.trainer.state
        trainer.log({"loss": loss})
        if not trainer.control.should_evaluate:
            return
        with self.ready.only(self.name):
            held_out = trainer.evaluate()["eval_loss"]
        if state.best_metric is None or held_out < state.best_metric:
            state.best_metric, state.best_global_step = held_out, state.global_step
            self._best = {name: p.detach().clone() for name, p in self.run.parameters.items()}

    def numbers(self) -> dict:
        """The state of the course that JSON can hold: the steps done, the losses, the counter of early stopping."""
        callbacks = {type(c).__name__: c.state()["attributes"] for c in self._exportable()}
        return {"state": dataclasses.asdict(self.trainer.state), "callbacks": callbacks}

    def tensors(self) -> dict:
        """The state of the course beside `numbers`: the adapter, the best adapter, the optimizer, the learning rate."""
        trainer = self.trainer
        return {
            "parameters": {name: p.detach() for name, p in self.run.parameters.items()},
            "best": self._best or {},
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
        }

    def restore(self, numbers: dict, tensors: dict) -> None:
        """Continues a course of the same run from this state. The generator of random numbers is not restored."""
        trainer, best = self.trainer, tensors["best"]
        trainer.state = TrainerState(**numbers["state"])
        for callback in self._exportable():
            for name, value in numbers["callbacks"][type(callback).__name__].items():
                setattr(callback, name, value)
        with torch.no_grad():
            for name, parameter in self.run.parameters.items():
                parameter.copy_(tensors["parameters"][name])
        self._best = {name: value.to(self.run.parameters[name].device) for name, value in best.items()} or None
        trainer.optimizer.load_state_dict(tensors["optimizer"])
        trainer.lr_scheduler.load_state_dict(tensors["scheduler"])
        for _ in range(trainer.state.global_step):  # the order of the examples depends on the seed and the epoch alone
            self.next_batches()

    def _exportable(self):
        return [c for c in self.trainer.callback_handler.callbacks if isinstance(c, ExportableState)]

    def take_best(self) -> None:
        """Gives the adapter the values of the evaluation with the lowest loss, if there was one."""
        with torch.no_grad():
            for name, value in (self._best or {}).items():
                self.run.parameters[name].copy_(value)

    def end(self) -> None:
        """Takes the best adapter, and tells the callbacks that training has ended."""
        self.take_best()
        self._tell("on_train_end")

    def _tell(self, event: str) -> None:
        trainer = self.trainer
        trainer.control = getattr(trainer.callback_handler, event)(trainer.args, trainer.state, trainer.control)
