"""AdapterTrainer: transformers.Trainer that saves adapters and goes on from them.

Trainer asks whether a model is an instance of PreTrainedModel or of peft's PeftModel before it lets it save itself, and
takes the state dict of any other, base model and all. A subclass is where it can be told.
"""

from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from .peft_model import PeftModel


class AdapterTrainer(Trainer):
    """transformers.Trainer for a PeftModel: what it saves are the adapters, as save_pretrained writes them.

    So do its checkpoints, beside the state of the optimizer; resume_from_checkpoint and load_best_model_at_end read
    them. With any other model it is transformers.Trainer.

    Raises ValueError for FSDP and DeepSpeed, under which a process holds a part of each parameter only.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._saves_adapters() and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "AdapterTrainer does not gather parameters that are sharded: use neither FSDP nor DeepSpeed"
            )

    def _saves_adapters(self) -> bool:
        return isinstance(self.model, PeftModel)

    def _save(self, output_dir=None, state_dict=None):
        if not self._saves_adapters():
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(folder)
        processor = self.processing_class
        if processor is None:
            processor = getattr(self.data_collator, "tokenizer", None)
        if processor is not None:
            processor.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self._saves_adapters():
            self._load_adapters(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if self._saves_adapters():
            self._load_adapters(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_adapters(self, checkpoint):
        for adapter in self.model.peft_config:
            folder = Path(checkpoint) if adapter == "default" else Path(checkpoint) / adapter
            self.model.load_adapter(folder, adapter, is_trainable=True)
