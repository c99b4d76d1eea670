"""What a run's numbers mean, in sentences."""

from pypeft_fast.finetune.report.advice import after_training


def test_sentences_after():
    metrics = {"eval_loss_before": 4.39, "eval_loss_after": 5.62, "best_step": None, "steps": 6, "stopped_early": False}
    lines = after_training(metrics)
    assert lines[0] == "loss on held-out data: 4.390 before, 5.620 after"
    assert lines[1].startswith("warning: the held-out loss rose, so this adapter answers new questions worse")
    assert after_training(metrics | {"eval_loss_after": 3.0}) == ["loss on held-out data: 4.390 before, 3.000 after"]
    assert after_training(metrics | {"eval_loss_before": None}) == []
