"""Losses of several forward passes: siamese pairs, views, and batches that were given up in between."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from cggm import CGGM, UnimodalLosses
from cggm.policies import AGM, DGL, OGMGE, MMPareto, ModalityDropout, NormEqualization
from helpers import SmallModel, batches, flat, small_model, train, wrap


def views(count=2, size=16):
    ((inputs, target),) = batches(1, size=size)
    torch.manual_seed(3)
    return [[x + 0.1 * torch.randn_like(x) for x in inputs] for _ in range(count)], target


def siamese_loss(model, pair, target):
    one, other = (model(*view) for view in pair)
    return F.cross_entropy(one, target) + F.cross_entropy(other, target) + (one - other).square().mean()


def test_losses_and_scores_are_means_over_the_passes():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses() + CGGM(smoothing=0.0))
    pair, target = views()
    loss = siamese_loss(model, pair, target)
    total = optimizer.balance(loss, target)
    by_hand = []
    for view in pair:
        features = [model.encoders[m](x) for m, x in zip(model.modalities, view, strict=True)]
        by_hand.append(
            [
                F.cross_entropy(classifier(x), target).detach()
                for classifier, x in zip(model.unimodal_classifiers.children(), features, strict=True)
            ]
        )
    means = torch.tensor(by_hand).mean(0)
    torch.testing.assert_close(total - loss, means.sum())
    total.backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.statistics["scores"], -means)


def test_two_equal_views_train_as_one():
    """Twice the same pass, and half of each loss, is the same training as one pass."""
    results = []
    for passes in (1, 2):
        model = small_model()
        optimizer = wrap(model, policy=UnimodalLosses() + CGGM(smoothing=0.5), apply="gradient")
        for inputs, target in batches(4):
            optimizer.zero_grad()
            losses = [F.cross_entropy(model(*inputs), target) for _ in range(passes)]
            optimizer.balance(sum(losses) / passes, target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "policy", [DGL(), NormEqualization(), MMPareto(), UnimodalLosses() + ModalityDropout(0.5)]
)
def test_every_pass_goes_through_the_junction(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    for _ in range(2):
        pair, target = views(3)
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(model(*view), target) for view in pair)
        optimizer.balance(loss, target).backward()
        optimizer.step()
    assert flat(model).isfinite().all()


class TwoTowers(SmallModel):
    """Runs every encoder twice in one forward pass, one encoder after the other."""

    def forward(self, *pairs):
        features = [
            [self.encoders[m](x) for x in pair] for m, pair in zip(self.modalities, pairs, strict=True)
        ]
        self.joined = [torch.cat(each, 1) for each in zip(*features, strict=True)]
        return [self.head(self.fusion(x).relu()) for x in self.joined]


def test_no_sample_loses_every_modality_of_a_view():
    torch.manual_seed(0)
    model = TwoTowers()
    _optimizer = wrap(model, policy=UnimodalLosses() + ModalityDropout(1.0))
    (one, other), _ = views(size=64)
    model(*zip(one, other, strict=True))
    for joined in model.joined:
        assert (joined.unflatten(1, (2, 4)).eq(0).all(2).sum(1) == 1).all()


@pytest.mark.parametrize("policy", [CGGM(smoothing=0.0), UnimodalLosses(), AGM()])
def test_a_batch_that_was_given_up_counts_for_nothing(policy):
    results = []
    for given_up in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=policy)
        for inputs, target in batches(3):
            optimizer.zero_grad()
            if given_up:
                with pytest.raises(RuntimeError, match="mat1"):
                    model(torch.randn(5, 8), torch.randn(5, 9))  # fails in the second encoder
                bad = F.cross_entropy(model(torch.randn(5, 8), torch.randn(5, 6)), torch.arange(5) % 3)
            optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    assert bad.requires_grad
    torch.testing.assert_close(*results)


def test_dgl_lets_no_multimodal_gradient_into_encoders_that_run_twice():
    model = TwoTowers()
    optimizer = wrap(model, policy=DGL())
    (one, other), target = views()
    outputs = model(*zip(one, other, strict=True))
    features = [hook.features for hook in optimizer._model.encoders.hooks]
    classifiers = model.unimodal_classifiers.children()
    alone = sum(
        F.cross_entropy(c(x), target) / 2 for c, runs in zip(classifiers, features, strict=True) for x in runs
    )
    parameters = list(model.encoders.parameters())
    wanted = torch.autograd.grad(alone, parameters, retain_graph=True)
    optimizer.balance(sum(F.cross_entropy(o, target) for o in outputs), target).backward()
    torch.testing.assert_close([p.grad for p in parameters], list(wanted))
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("trap", ["no balance", "evaluation", "no gradients"])
@pytest.mark.parametrize("last", [False, True])
def test_a_micro_batch_without_balance_is_noticed_once(trap, last):
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())

    def other_pass(inputs, target):
        with torch.set_grad_enabled(trap != "no gradients"):
            model.train(trap != "evaluation")
            loss = F.cross_entropy(model(*inputs), target)
            model.train()
        if trap == "no balance":
            loss.backward()

    def step():
        for number, (inputs, target) in enumerate(batches(2)):
            if number == last:
                other_pass(inputs, target)
            else:
                optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
        step()
    assert [w.filename for w in caught] == [__file__] * (trap == "no balance")
    assert all(
        "1 forward pass(es) of this step did not go through balance()" in str(w.message) for w in caught
    )


def test_training_without_balance_keeps_no_graphs():
    model = small_model()
    optimizer = wrap(model)
    for inputs, target in batches(3):
        F.cross_entropy(model(*inputs), target).backward()
        optimizer.step()
        assert all(not hook.features for hook in optimizer._model.encoders.hooks)
    model.eval()
    for inputs, _ in batches(3):
        model(*inputs)
    assert all(len(hook.features) == 1 for hook in optimizer._model.encoders.hooks)


def test_encoders_that_run_unequally_often_are_refused():
    model = small_model()
    optimizer = wrap(model)
    ((inputs, target),) = batches(1)
    audio = [model.encoders["audio"](inputs[0]) for _ in range(2)]
    hidden = torch.cat([sum(audio), model.encoders["image"](inputs[1])], 1)
    loss = F.cross_entropy(model.head(model.fusion(hidden)), target)
    with pytest.raises(RuntimeError, match=r"unequally often .*\{'audio': 2, 'image': 1\}"):
        optimizer.balance(loss, target)


def test_passes_of_another_size_than_the_target_are_refused():
    model = small_model()
    optimizer = wrap(model)
    (one, other), target = views()
    loss = F.cross_entropy(model(*one), target) + model(*(x[:8] for x in other)).square().mean()
    with pytest.raises(ValueError, match="target has 16 samples, and forward pass 2 of this loss had 8"):
        optimizer.balance(loss, target)


@pytest.mark.parametrize("policy", [AGM(), OGMGE(split_head=True)])
def test_policies_that_know_one_pass_refuse_several(policy):
    model = small_model()
    optimizer = wrap(model, policy=policy)
    pair, target = views()
    with pytest.raises(
        RuntimeError, match="comes from 2 forward passes of the encoders, and this policy scores one"
    ):
        optimizer.balance(siamese_loss(model, pair, target), target)


class Checkpointed(SmallModel):
    def forward(self, *inputs):
        features = [
            checkpoint(self.encoders[m], x, use_reentrant=False).relu()
            for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


def test_checkpointing_repeats_no_pass():
    results = []
    for kind in (SmallModel, Checkpointed):
        torch.manual_seed(0)
        model = kind()
        optimizer = wrap(model, policy=NormEqualization() + CGGM(smoothing=0.0))
        for _ in range(2):
            pair, target = views()
            optimizer.zero_grad()
            optimizer.balance(siamese_loss(model, pair, target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_checkpointing_and_dropout_refuse_several_passes():
    torch.manual_seed(0)
    model = Checkpointed()
    optimizer = wrap(model, policy=UnimodalLosses() + ModalityDropout(0.5))
    train(model, optimizer, steps=1)
    pair, target = views()
    with (
        set_checkpoint_early_stop(False),
        pytest.raises(RuntimeError, match="modality dropout cannot tell which"),
    ):
        optimizer.balance(siamese_loss(model, pair, target), target).backward()


def test_a_frozen_encoder_counts_with_the_others():
    model = small_model()
    model.encoders["audio"].requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        optimizer = wrap(model, policy=UnimodalLosses())
    pair, target = views()
    optimizer.balance(siamese_loss(model, pair, target), target).backward()
    optimizer.step()
    assert nn.utils.parameters_to_vector(model.encoders["image"].parameters()).isfinite().all()


def test_an_evaluation_with_gradients_between_forward_and_balance_changes_nothing():
    results = []
    for looks in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=NormEqualization() + ModalityDropout(0.5))
        torch.manual_seed(0)
        for inputs, target in batches(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), target)
            if looks:
                model.eval()
                for _ in range(2):
                    model(*[x[:5] for x in inputs])
                model.train()
                assert [len(hook.features) for hook in optimizer._model.encoders.hooks] == [2, 2]
            optimizer.balance(loss, target).backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


def test_dropout_in_evaluation_mode_is_said_once():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses() + ModalityDropout(0.5))
    model.eval()
    with pytest.warns(UserWarning, match="evaluation mode, in which modality dropout drops nothing"):
        train(model, optimizer, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, steps=1)


def test_classifiers_that_were_frozen_with_the_model_are_said():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("unimodal_classifiers"))
    with pytest.warns(UserWarning, match=r"classifiers of \['audio', 'image'\] are frozen"):
        train(model, optimizer, steps=1)
