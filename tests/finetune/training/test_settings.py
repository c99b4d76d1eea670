"""The number of steps of a run, and of the steps between checkpoints."""

from pypeft_fast.finetune.training.settings import Settings


def test_an_epoch_is_the_default_within_bounds():
    settings = Settings("m", "d", batch_size=4, epochs=5)
    assert [settings.checkpoint_steps(n) for n in (3, 40, 200, 4000)] == [10, 10, 50, 200]
    assert (settings.steps(9), settings.steps(400)) == (15, 500)
    assert Settings("m", "d", save_every=7).checkpoint_steps(1000) == 7
    assert Settings("m", "d", batch_size=4, gradient_accumulation=2, epochs=2).steps(9) == 4
