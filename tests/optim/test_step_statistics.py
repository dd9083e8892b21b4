"""What `optimizer.statistics` says about a step."""

import pytest
import torch

from cggm import CGGM, ModalityDropout, NormEqualization, UnimodalLosses
from cggm.policies import DGL, MMPareto
from helpers import backward, batches, flat, small_model, train, wrap

SHOWN = {"unimodal_shares", "angles", "step_changes"}


def test_loss_is_the_multimodal_one():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    inputs, target = next(batches(1))
    loss = backward(model, optimizer, inputs, target)
    optimizer.step()
    assert torch.equal(optimizer.statistics["loss"], loss)
    torch.testing.assert_close(optimizer.statistics["unimodal_losses"], -optimizer.statistics["scores"])


def test_it_prints_a_row_per_statistic():
    model = small_model()
    optimizer = wrap(model)
    assert str(optimizer.statistics) == "no balanced step yet"
    train(model, optimizer, steps=1)
    text = str(optimizer.statistics)
    assert text.splitlines()[0].split() == ["audio", "image"]
    assert {line.split()[0] for line in text.splitlines()[1:]} == set(optimizer.statistics)


@pytest.mark.parametrize(
    ("policy", "share"), [(UnimodalLosses(), None), (NormEqualization(), 0.5), (DGL(), 1.0)]
)
def test_what_a_combiner_did(policy, share):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    optimizer.record = True
    inputs, target = next(batches(1))
    seen = {}
    for hook, name in zip(optimizer._model.encoders.hooks, optimizer.modalities, strict=True):
        own = hook.junction._combined

        def watch(multimodal, unimodal, own=own, name=name):
            seen[name] = multimodal, unimodal, own(multimodal, unimodal)
            return seen[name][2]

        hook.junction._combined = watch
    backward(model, optimizer, inputs, target)
    optimizer.step()
    for i, name in enumerate(optimizer.modalities):
        m, u, g = seen[name]
        expected = u.norm() / (m.norm() + u.norm()) if share is None else torch.tensor(share)
        found = {key: optimizer.statistics[key][i] for key in SHOWN}
        torch.testing.assert_close(found["unimodal_shares"], expected.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["step_changes"], g.norm() / m.norm(), rtol=1e-4, atol=1e-5)
        cosine = (m * u).sum() / (m.norm() * u.norm())
        torch.testing.assert_close(found["angles"].deg2rad().cos(), cosine, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", [CGGM(), MMPareto()])
def test_nothing_is_recorded_where_nothing_is_combined_at_the_outputs(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    optimizer.record = True
    train(model, optimizer, steps=1)
    assert not SHOWN & {name for name, value in optimizer.statistics.items() if value.isfinite().any()}


def test_recording_changes_no_weight_and_can_be_stopped():
    models, optimizers = [], []
    for _ in range(2):  # the model seeds the random numbers that the classifiers draw from
        models.append(small_model())
        optimizers.append(wrap(models[-1], policy=NormEqualization(bounded=True)))
    optimizers[0].record = True
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, steps=3)
    assert torch.equal(flat(models[0]), flat(models[1]))
    assert set(optimizers[0].statistics) - set(optimizers[1].statistics) == SHOWN
    optimizers[0].record = False
    train(models[0], optimizers[0], steps=1)
    assert not SHOWN & set(optimizers[0].statistics)
    with pytest.raises(TypeError, match="record"):
        optimizers[0].record = 1


def test_dropout_says_its_rates():
    model = small_model()
    optimizer = wrap(model, policy=ModalityDropout(0.2))
    train(model, optimizer, steps=1)
    torch.testing.assert_close(optimizer.statistics["dropout_rates"], torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize("record", [False, True])
def test_norms_are_never_those_of_cleared_gradients(record):
    model = small_model()
    optimizer = wrap(model, policy=CGGM(), apply="feature")
    optimizer.record = record
    inputs, target = next(batches(1))
    backward(model, optimizer, inputs, target)
    optimizer.step()
    norms = torch.stack(
        [
            torch.cat([p.grad.flatten() for p in model.encoders[m].parameters()]).norm()
            for m in model.modalities
        ]
    )
    optimizer.zero_grad()
    if record:
        torch.testing.assert_close(optimizer.statistics["grad_norms"], norms)
    else:
        with pytest.raises(KeyError, match=r"optimizer\.record = True"):
            optimizer.statistics["grad_norms"]
        assert "grad_norms" not in dict(optimizer.statistics)
