"""Diagnosing and re-learning: purity of clusters, and encoders that go back towards their first weights."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.preprocessing import MinMaxScaler

from cggm import CGGM
from cggm.model.relearning import k_means, purity
from helpers import backward, batches, flat, small_model, train, wrap


def blobs(spread, samples=60, seed=0):
    """Three classes around three centres."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(samples) % 3
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 300.0]])
    noise = torch.randn(samples, 2, generator=generator) * torch.tensor([1.0, 30.0])
    return centres[target] + spread * noise, target


def test_clusters_far_apart_are_found_and_always_the_same():
    features, target = blobs(0.1)
    state = torch.get_rng_state()
    found = k_means(features, 3)
    assert len(set(zip(found.tolist(), target.tolist(), strict=True))) == 3
    assert torch.equal(found, k_means(features, 3))
    assert torch.equal(state, torch.get_rng_state())
    assert k_means(torch.ones(5, 2), 3).tolist() == [0] * 5
    assert k_means(features[:3], 3).unique().numel() == 3


@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_purity_is_that_of_the_authors_arithmetic(spread):
    """Scaling to [-1, 1] and k-means as in scikit-learn, and the share of the majority in each cluster."""
    features, target = blobs(spread, samples=300)
    scaled = MinMaxScaler(feature_range=(-1, 1)).fit_transform(features.numpy())
    found = KMeans(n_clusters=3, random_state=0, n_init=10).fit_predict(scaled)
    voted = np.zeros(len(target))
    for cluster in np.unique(found):
        members = target.numpy()[found == cluster]
        voted[found == cluster] = np.bincount(members).argmax()
    expected = (voted == target.numpy()).mean()
    assert purity(features, target, 3).item() == pytest.approx(expected, abs=0.01)


def trained(seed=0, policy=None):
    model = small_model(seed=seed)
    initial = copy.deepcopy(model.state_dict())
    optimizer = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), policy)
    train(model, optimizer, steps=30)
    optimizer.zero_grad()
    return model, optimizer, initial


def test_encoders_go_back_by_their_gap_and_nothing_else_changes():
    model, optimizer, initial = trained()
    before, kept = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    (seen,), (unseen,) = batches(1, size=60), batches(1, size=37, seed=9)
    model.encoders.audio.eval()  # frozen so by the user
    found = optimizer.relearn([seen], [unseen], initial, strength=3.0)
    assert model.training
    assert not model.encoders.audio.training
    shares = [
        math.tanh(3 * abs(a - b))
        for a, b in zip(found.train.tolist(), found.validation.tolist(), strict=True)
    ]
    assert found.shares.tolist() == pytest.approx(shares)
    assert min(shares) > 0.01
    assert shares[0] != shares[1]
    for (name, now), was in zip(model.state_dict().items(), before.values(), strict=True):
        share = shares[0] if "audio" in name else shares[1] if "image" in name else 0.0
        torch.testing.assert_close(now, (1 - share) * was + share * initial[name], msg=name)
    for key, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(entry[k]), torch.as_tensor(v)) for k, v in kept[key].items())
    train(model, optimizer, steps=2)
    assert torch.isfinite(flat(model)).all()


def test_without_a_gap_nothing_changes():
    model, optimizer, initial = trained()
    before = flat(model)
    found = optimizer.relearn(batches(3), batches(3), initial)  # batches one after the other are one set
    assert found.shares.tolist() == [0, 0]
    assert torch.equal(flat(model), before)


def test_the_purity_is_of_the_features_that_the_classifiers_read():
    model, optimizer, initial = trained()
    (inputs, target), *_ = batches(1, size=60)
    with torch.no_grad():
        expected = [
            purity(model.encoders[m](x), target, 3) for m, x in zip(model.modalities, inputs, strict=True)
        ]
    found = optimizer.relearn([(inputs, target)], batches(1, seed=9), initial)
    torch.testing.assert_close(found.train, torch.stack(expected))


def test_training_resumes_bit_for_bit_after_it():
    results = []
    for resumed in (False, True):
        model, optimizer, initial = trained(policy=CGGM())
        if resumed:
            states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model, optimizer, _ = trained(seed=5, policy=CGGM())
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        optimizer.relearn(batches(2), batches(1, seed=9), initial)
        train(model, optimizer, steps=3, seed=4)
        results.append(flat(model))
    assert torch.equal(*results)


def test_what_cannot_be_is_refused_and_changes_nothing():
    model, optimizer, initial = trained()
    before = flat(model)
    ((inputs, target),) = batches(1)
    one = [(inputs, target)]
    for arguments, message in [
        (([], one, initial), "train holds no batch"),
        (
            (one, [(inputs, target.float())], initial),
            r"validation must hold class indices below 3, .* torch.float32",
        ),
        ((one, [([x[:2] for x in inputs], target[:2])], initial), "as many samples as classes"),
        ((one, one, {}), r"initial must hold .*: encoders.audio.0.weight is \[16, 8\] here, and None there"),
        ((one, one, initial, -1.0), "strength must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.relearn(*arguments)
    backward(model, optimizer, inputs, target)
    with pytest.raises(RuntimeError, match=r"relearn\(\) in the middle of a step"):
        optimizer.relearn(one, one, initial)
    assert torch.equal(flat(model), before)
