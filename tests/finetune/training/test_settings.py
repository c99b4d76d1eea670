"""The number of steps of a run, and of the steps between checkpoints."""

from pypeft_fast.finetune.training.settings import Settings


def test_an_epoch_is_the_default_within_bounds():
    settings = Settings("m", "d", batch_size=4, epochs=5)
    assert [settings.checkpoint_steps(n) for n in (3, 40, 200, 4000)] == [10, 10, 50, 200]
    assert (settings.steps(9), settings.steps(400)) == (15, 500)
    assert Settings("m", "d", save_every=7).checkpoint_steps(1000) == 7
    assert Settings("m", "d", batch_size=4, gradient_accumulation=2, epochs=2).steps(9) == 4


def test_a_warm_up_is_a_fraction_or_a_number_of_steps():
    def steps(warmup, of=100):
        return Settings("m", "d", max_steps=of, warmup=warmup).warmup_steps(10)

    assert [steps(0), steps(0.29), steps(1), steps(7), steps(0.5, of=3)] == [0, 29, 1, 7, 1]
    assert all(steps(0.05, of=n) == n // 20 for n in range(1, 2000))
