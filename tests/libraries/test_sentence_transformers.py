"""sentence-transformers trains an encoder with our adapter, with the same losses as PEFT."""

import peft
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel

import pypeft_fast as pf
from tests.finetune.conftest import make_tokenizer


def encoder(folder):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = Transformer(str(folder), max_seq_length=16)
    return SentenceTransformer(modules=[words, Pooling(32)], device="cpu")


def test_losses_are_pefts_and_the_layers_are_fused(tmp_path):
    pairs = {"anchor": ["what is it", "why sky blue"], "positive": ["it is small", "it scatters light"]}
    logged = {}
    for library in (peft, pf):
        model = encoder(tmp_path / "base")
        torch.manual_seed(1)
        config = peft.LoraConfig(
            r=4, target_modules=["query", "value", "dense"], task_type="FEATURE_EXTRACTION", init_lora_weights=False
        )
        if library is pf:
            config = pf.register(config)
        model.add_adapter(config)
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / library.__name__), max_steps=3, learning_rate=1e-2, report_to=[], use_cpu=True,
            logging_steps=1, save_strategy="no", disable_tqdm=True, per_device_train_batch_size=2,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            model, arguments, train_dataset=Dataset.from_dict(pairs),
            loss=losses.MultipleNegativesRankingLoss(model),
        )  # fmt: skip
        trainer.train()
        logged[library] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report = pf.fuse(model)
    assert len(report.fused) >= 10 and report.calls()["fused"] >= 3 * len(report.fused) - 3 and not report.left
    torch.testing.assert_close(
        torch.tensor([float(v) for v in logged[pf]]), torch.tensor([float(v) for v in logged[peft]]),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
