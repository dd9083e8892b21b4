"""Accelerate, Lightning and the Trainer of transformers drive the wrapper as an optimizer; each by its example."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import with_accelerate
import with_lightning
import with_transformers
from helpers import flat, small_model, wrap

KINDS = [with_transformers.ClipClassifier, with_transformers.LlavaClassifier]


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate remembers its first settings for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_with_accumulation_and_clipping(precision):
    history = with_accelerate.main(precision)
    assert history[-1] < 0.95 * history[0]


@pytest.mark.parametrize("automatic", [True, False])
def test_lightning(automatic):
    module = with_lightning.main(automatic)
    assert sum(module.losses[-16:]) < 0.95 * sum(module.losses[:16])
    assert module.optimizer.param_groups[0]["lr"] == pytest.approx(1.5e-3)
    assert not torch.equal(module.optimizer.statistics["coefficients"], torch.ones(2))


def test_lightning_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    whole = with_lightning.main(epochs=3)
    part = with_lightning.main(epochs=2)
    part.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = with_lightning.main(epochs=3, resume=str(tmp_path / "half.ckpt"))
    assert len(resumed.losses) == 16
    assert torch.equal(flat(resumed), flat(whole))
    assert torch.equal(
        resumed.optimizer.statistics["coefficients"], whole.optimizer.statistics["coefficients"]
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_trainer_of_transformers(kind, tmp_path):
    trainer = with_transformers.main(kind, folder=str(tmp_path))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 1.2  # chance is 1.39; evaluation does not balance
    assert trainer.balanced.modalities == ("text", "image")
    assert trainer.balanced.param_groups[0]["lr"] == pytest.approx(0.0)  # the Trainer's schedule ran out


@pytest.mark.slow
def test_the_trainer_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    kind = with_transformers.ClipClassifier
    whole = with_transformers.main(kind, 20, str(tmp_path / "a"), save_strategy="steps", save_steps=10)
    saved = str(tmp_path / "a" / "checkpoint-10")
    resumed = with_transformers.main(kind, 20, str(tmp_path / "b"), resume_from_checkpoint=saved)
    assert torch.equal(flat(resumed.model), flat(whole.model))


def test_an_optimizer_that_accelerate_prepared_is_refused():
    model = small_model()
    prepared = Accelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"make the wrapper around the plain optimizer, then .*prepare"):
        wrap(model, prepared)
