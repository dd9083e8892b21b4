"""Modality dropout: one draw per sample and forward pass, shared by all encoders, never all modalities."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cggm import CGGM, CGGMOptimizerWrapper, ModalityDropout, NormEqualization, UnimodalLosses
from cggm.junctions.features import make_junctions
from cggm.policies import OPM
from helpers import SmallModel, batches, flat, plan_of, small_model, train, wrap

THREE = ("audio", "image", "text")


class Seen(SmallModel):
    """Keeps the features that its fusion gets; they are never zero by themselves."""

    def forward(self, *inputs):
        self.seen = [self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True)]
        return self.head(self.fusion(torch.cat(self.seen, 1)).relu())

    def dropped(self):
        return torch.stack([(features == 0).all(1) for features in self.seen])  # [M, B]


def make(p=0.5, modalities=THREE, policy=None, kind=Seen):
    torch.manual_seed(0)
    model = kind(modalities)
    return model, wrap(model, policy=ModalityDropout(p) if policy is None else policy)


def test_each_sample_loses_one_modality_or_none():
    model, optimizer = make(p=0.6)
    ((inputs, _),) = batches(1, THREE, size=6000)
    model(*inputs)
    dropped = model.dropped()
    assert dropped.sum(0).max() == 1
    assert dropped.sum(0).float().mean().item() == pytest.approx(0.6, abs=0.03)
    for share in dropped.float().mean(1).tolist():
        assert share == pytest.approx(0.2, abs=0.03)
    assert optimizer.modalities == THREE


def test_every_sample_at_p_one_and_none_at_p_zero():
    for p in (0.0, 1.0):
        model, _optimizer = make(p=p, modalities=("audio", "image"))
        ((inputs, _),) = batches(1, size=500)
        model(*inputs)
        assert (model.dropped().sum(0) == p).all()


def test_the_draw_changes_from_pass_to_pass_and_follows_the_seed():
    masks = []
    for seed in (1, 1, 2):
        model, optimizer = make()
        ((inputs, target),) = batches(1, THREE)
        torch.manual_seed(seed)
        draws = []
        for _ in range(2):
            loss = F.cross_entropy(model(*inputs), target)
            draws.append(model.dropped())
            optimizer.balance(loss, target)
        draws.append((model(*inputs), model.dropped())[1])  # without balance() in between: a pass of its own
        draws.append((model(*inputs), model.dropped())[1])
        assert not any(torch.equal(draws[i], draws[j]) for i in range(4) for j in range(i))
        masks.append(torch.stack(draws))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_seed_means_one_uniform_number_per_sample():
    model, _optimizer = make(p=0.6)
    ((inputs, _),) = batches(1, THREE)
    torch.manual_seed(3)
    model(*inputs)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    places = (torch.rand(32) * (3 / 0.6)).floor()  # u < p falls into one of three equal parts of [0, p)
    assert torch.equal(model.dropped(), torch.stack([places == i for i in range(3)]))
    assert torch.equal(after, torch.get_rng_state())


def test_off_in_evaluation_mode_and_without_gradients():
    model, optimizer = make(p=1.0)
    ((inputs, _),) = batches(1, THREE)
    model.eval()
    model(*inputs)
    assert not model.dropped().any()
    model.train()
    with torch.no_grad():
        model(*inputs)
    assert not model.dropped().any()
    model(*inputs)
    assert model.dropped().any()
    optimizer.active = False
    model(*inputs)
    assert not model.dropped().any()


def test_the_classifiers_see_the_features_as_they_are():
    outputs = []
    for p in (0.0, 1.0):
        model, optimizer = make(p=p)
        ((inputs, target),) = batches(1, THREE)
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.modulate()
        outputs.append(optimizer.statistics["scores"])
    torch.testing.assert_close(*outputs)


def test_no_gradient_goes_to_what_was_dropped():
    model, optimizer = make(p=1.0)
    ((inputs, target),) = batches(1, THREE)
    inputs = [x.requires_grad_() for x in inputs]
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    for x, dropped in zip(inputs, model.dropped(), strict=True):
        assert torch.equal((x.grad == 0).all(1), dropped)


@pytest.mark.parametrize("policy", [UnimodalLosses(), NormEqualization()], ids=repr)
def test_what_is_dropped_may_be_anything(policy):
    (junction,) = make_junctions(plan_of(policy), ["audio"])
    features = torch.tensor([[torch.nan], [1.0]], requires_grad=True)
    dropped = torch.tensor([[True], [False]])
    multimodal, unimodal = junction.split(features, dropped, nn.Identity(), ())
    assert multimodal.tolist() == [[0.0], [1.0]]
    gradients = [torch.tensor([[torch.inf], [2.0]]), torch.tensor([[0.0], [2.0]])]
    torch.autograd.backward([multimodal, unimodal], gradients)
    assert features.grad.tolist() == [[0.0], [4.0]]


def test_only_a_rule_or_a_checkpoint_needs_more_than_autograd_does_by_itself():
    nodes = []
    for policy in (ModalityDropout(0.5), NormEqualization() + ModalityDropout(0.5)):
        model, _optimizer = make(policy=policy)
        ((inputs, _),) = batches(1, THREE)
        model(*inputs)
        nodes.append(model.seen[0].grad_fn.name())
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):  # as checkpointing does
            model(*inputs)
        nodes.append(model.seen[0].grad_fn.name())
    assert nodes == ["MaskedFillBackward0", *["_SplitBackward"] * 3]


class CheckpointedEncoders(SmallModel):
    def forward(self, *inputs):
        features = [
            checkpoint(self.encoders[m], x, use_reentrant=False).relu()
            for m, x in zip(self.modalities, inputs, strict=True)
        ]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


class CheckpointedParts(SmallModel):
    """Encoders with something random behind them in one checkpointed piece, and the fusion in another."""

    def encode(self, modality, x):
        return F.dropout(self.encoders[modality](x).relu() + 1, 0.2)

    def fuse(self, *features):
        return self.head(F.dropout(self.fusion(torch.cat(features, 1)).relu(), 0.3))

    def forward(self, *inputs):
        run = self.run
        features = [run(self.encode, m, x) for m, x in zip(self.modalities, inputs, strict=True)]
        return run(self.fuse, *features)

    def run(self, function, *arguments):
        return checkpoint(function, *arguments, use_reentrant=False)


class WithoutCheckpoints(CheckpointedParts):
    def run(self, function, *arguments):
        return function(*arguments)


class CheckpointedWhole(WithoutCheckpoints):
    def forward(self, *inputs):
        return checkpoint(super().forward, *inputs, use_reentrant=False)


@pytest.mark.parametrize("kind", [CheckpointedParts, CheckpointedWhole])
@pytest.mark.parametrize("policy", [ModalityDropout(0.5), UnimodalLosses() + ModalityDropout(0.5)])
def test_activation_checkpointing_meets_the_same_draw(kind, policy):
    results = []
    for each in (WithoutCheckpoints, kind):
        model, optimizer = make(policy=policy, kind=each)
        torch.manual_seed(4)
        train(model, optimizer, steps=6)
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_two_forward_passes_before_one_backward_with_checkpointing():
    results = []
    for kind in (SmallModel, CheckpointedEncoders):
        model, optimizer = make(kind=kind)
        torch.manual_seed(4)
        losses = []
        for inputs, target in batches(2, THREE):
            losses.append(optimizer.balance(F.cross_entropy(model(*inputs), target), target))
        sum(losses).backward()
        optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_sequences_and_maps_lose_whole_samples():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.head = nn.Linear(3, 4), nn.Conv2d(2, 4, 1), nn.Linear(8, 3)

        def forward(self, x, y):
            self.seen = self.one(x), self.other(y)
            return self.head(torch.cat([self.seen[0].mean(1), self.seen[1].mean((2, 3))], 1))

    torch.manual_seed(0)
    model = Sequences()
    encoders = {"one": "one", "other": "other"}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    _optimizer = CGGMOptimizerWrapper(
        base, model, encoders=encoders, head="head", policy=ModalityDropout(0.9)
    )
    model(torch.randn(50, 7, 3), torch.randn(50, 2, 4, 4))
    zero = torch.stack([(x.flatten(1) == 0).all(1) for x in model.seen])
    assert zero.sum(0).max() == 1
    assert torch.equal(zero, torch.stack([(x.flatten(1) == 0).any(1) for x in model.seen]))


def test_features_of_different_numbers_of_samples_are_refused():
    model, _optimizer = make(modalities=("audio", "image"))
    with pytest.raises(
        ValueError, match=r"encoder 'image' puts out features \[6, 4\] beside .* of 8 samples"
    ):
        model(torch.randn(8, 8), torch.randn(6, 6))


def test_under_torch_compile():
    results = []
    for compiled in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=UnimodalLosses() + ModalityDropout(0.5) + CGGM(smoothing=0.5))
        run = torch.compile(model, backend="aot_eager") if compiled else model
        torch.manual_seed(2)
        for inputs, target in batches(4):
            optimizer.zero_grad()
            optimizer.balance(F.cross_entropy(run(*inputs), target), target).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results)


def test_the_leading_modality_is_dropped_in_the_next_step_at_a_rate_that_checkpoints_and_copies_keep():
    torch.manual_seed(0)
    model = Seen()
    optimizer = wrap(model, policy=OPM(0.5, 0.5))
    ((inputs, target),) = batches(1, size=4000)
    loss = F.cross_entropy(model(*inputs), target)
    assert not model.dropped().any()
    optimizer.balance(loss, target).backward()
    optimizer.step()
    state = optimizer.state_dict()
    (rates,) = [
        v for entry in state["state"].values() for k, v in entry.items() if k == "policy.dropout.rates"
    ]
    assert (rates > 0).sum() == 1
    resumed = Seen()
    its = wrap(resumed, policy=OPM(0.5, 0.5))
    its.load_state_dict(state)
    model.seen = []  # a graph cannot be copied
    twin, _kept = copy.deepcopy((model, optimizer))
    for trained in (model, resumed, twin):
        trained(*inputs)
        torch.testing.assert_close(trained.dropped().float().mean(1), rates, rtol=0, atol=0.03)


class Normalized(SmallModel):
    """Divides features by their norm before the fusion, as CLIP does."""

    def forward(self, *inputs):
        features = [self.encoders[m](x) for m, x in zip(self.modalities, inputs, strict=True)]
        features = [x / x.norm(dim=-1, keepdim=True) for x in features]
        return self.head(self.fusion(torch.cat(features, 1)).relu())


@pytest.mark.parametrize(("fill", "sound"), [(0.0, False), (1e-6, True)])
def test_features_that_the_model_normalizes_want_a_fill(fill, sound):
    torch.manual_seed(0)
    model = Normalized()
    policy = NormEqualization() + ModalityDropout(0.5, fill=fill)
    train(model, wrap(model, policy=policy), steps=3)
    assert torch.isfinite(flat(model)).all() == sound


def test_the_default_policy_is_safe_there():
    torch.manual_seed(0)
    model = Normalized()
    names = {m: f"encoders.{m}" for m in model.modalities}
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), model, encoders=names, head="head"
    )
    losses = train(model, optimizer, steps=30)
    assert torch.isfinite(flat(model)).all()
    assert losses[-1] < losses[0]
