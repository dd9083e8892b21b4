"""Heads whose weight is computed from other parameters: balanced where that is right, refused where it is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from cggm import CGGM, NormEqualization, UnimodalLosses
from helpers import flat, small_model, train, wrap

NORMS = {"spectral": parametrizations.spectral_norm, "weight": parametrizations.weight_norm}


def model_with(norm):
    model = small_model()
    NORMS[norm](model.head)
    return model


@pytest.mark.parametrize("policy", [CGGM(), UnimodalLosses(), NormEqualization(bounded=True)], ids=repr)
@pytest.mark.parametrize("norm", NORMS)
def test_policies_without_a_direction_train(norm, policy):
    model = model_with(norm)
    before = flat(model)
    optimizer = wrap(model, policy=policy)
    losses = train(model, optimizer, steps=60, size=64)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not torch.equal(flat(model), before)
    assert (optimizer.statistics["cosines"] == 0).all()  # there is no gradient of such a weight to compare


def test_the_wrapper_does_not_step_the_power_iteration():
    """A step of plain training runs it once; the state dict holds its vectors."""
    models = [model_with("spectral"), model_with("spectral")]
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    calls = []
    for model in models:
        iterate = type(model.head.parametrizations.weight[0])._power_method
        counted = lambda self, *a, iterate=iterate, **k: calls.append(1) or iterate(self, *a, **k)  # noqa: E731
        model.head.parametrizations.weight[0]._power_method = counted.__get__(
            model.head.parametrizations.weight[0]
        )
    optimizer = wrap(models[1], policy=CGGM(), apply="gradient")
    made = len(calls)
    assert made <= 1
    train(models[1], optimizer, steps=3)
    assert len(calls) == made + 3


@pytest.mark.parametrize("direction", ["rotation", "gradient", "weights"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_direction_is_refused(norm, direction):
    model = model_with(norm)
    with pytest.raises(ValueError, match=r"head: the weight of 'head' is computed .* pass CGGM\(lam=0\)"):
        wrap(model, policy=CGGM(lam=0.1, direction=direction))
    assert not hasattr(model, "unimodal_classifiers")


def test_old_style_weight_norm_trains():
    model = small_model()
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(model.head)
    losses = train(model, wrap(model, policy=CGGM()), steps=20, size=64)
    assert losses[-1] < losses[0]
