"""The training scripts in examples/ learn, with models as their authors wrote them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import train_contrastive
import train_llava
import train_missing
import train_ogm_ge
import train_sequences
import train_siamese
from cggm.policies import MLB, OGMGE, OPM, ModalityDropout

RUNS = {
    "CLIP": (train_contrastive.main, {"steps": 60}, 0.6),
    "a dual encoder": (train_contrastive.main, {"build": train_contrastive.dual_encoder, "steps": 40}, 0.7),
    "SigLIP": (train_contrastive.main, {"build": train_contrastive.siglip, "steps": 80}, 0.7),
    "LLaVA": (train_llava.main, {"steps": 40}, 0.6),
    "LLaVA, OGM-GE": (train_llava.main, {"steps": 40, "policy": OGMGE()}, 0.6),
    "LLaVA, MLB and dropout": (train_llava.main, {"steps": 40, "policy": MLB() + ModalityDropout(0.1)}, 0.6),
    "LLaVA, OPM": (train_llava.main, {"steps": 30, "policy": OPM()}, 0.6),
    "sequences": (train_sequences.main, {"steps": 30}, 0.7),
    "missing modalities": (train_missing.main, {"steps": 60}, 0.7),
    "a siamese pair": (train_siamese.main, {"steps": 40}, 0.6),
    **{
        f"OGM-GE, {kind}": (train_ogm_ge.main, {"fusion": kind}, 0.85)
        for kind in ("sum", "concat", "film", "gated")
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_learns(name):
    run, options, part = RUNS[name]
    losses, optimizer = run(**options)
    assert sum(losses[-5:]) < part * sum(losses[:5])
    statistics = optimizer.statistics
    assert statistics["scores"].isfinite().all()
    assert statistics["coefficients"].isfinite().all()


def test_masked_scores_see_that_the_picture_holds_the_answer():
    _, optimizer = train_llava.main(steps=41)
    text, image = optimizer.statistics["scores"].tolist()
    assert image > text
    assert not torch.equal(optimizer.statistics["coefficients"], torch.ones(2))
