"""Batches in which samples lack a modality."""

import pytest
import torch
from torch.nn import functional as F

from cggm import CGGM, NormEqualization, Segmentation, UnimodalLosses
from cggm.policies import AGM, MIMO, MLB, OGMGE, OPM, SMP, FeaturePareto, MMPareto, ModalityDropout, TCMax
from cggm.tasks import Classification, MultiLabel, Regression
from helpers import NoHostRead, SmallModel, batches, small_model, wrap

POLICIES = [
    CGGM(lam=0.1),
    CGGM.paper(1.0, 0.1),
    UnimodalLosses(),
    NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6),
    MMPareto(),
    FeaturePareto(),
    OGMGE(noise=False),
    MLB(),
    SMP(stage_steps=2, epoch_steps=2),
    UnimodalLosses() + MIMO(),
    OPM(),
]


class Partial(SmallModel):
    """Fuses zeros where a modality is missing; does not run its encoder where no sample has it."""

    def forward(self, *inputs, present=None):
        features = []
        for m, x in zip(self.modalities, inputs, strict=True):
            if x is None:
                size = next(len(y) for y in inputs if y is not None)
                features.append(torch.zeros(size, 4))
            else:
                z = self.encoders[m](x).relu_()
                mask = (present or {}).get(m)
                features.append(z if mask is None else z.masked_fill(~mask[:, None], 0))
        return self.head(self.fusion(torch.cat(features, 1)).relu_())


def partial_model():
    torch.manual_seed(0)
    return Partial()


@pytest.mark.parametrize("kind", ["classes", "probabilities", "labels", "values", "maps", "tokens"])
def test_absent_samples_count_for_nothing(kind):
    torch.manual_seed(0)
    present = torch.tensor([True, False, True, True])
    output, task, target = {
        "classes": (torch.randn(4, 3), Classification(), torch.tensor([0, 1, 2, 1])),
        "probabilities": (torch.randn(4, 3), Classification(), torch.randn(4, 3).softmax(1)),
        "labels": (torch.randn(4, 3), MultiLabel(), torch.randint(2, (4, 3))),
        "values": (torch.randn(4, 1), Regression(kind="mse"), torch.randn(4)),
        "maps": (torch.randn(4, 3, 5), Segmentation(), torch.randint(3, (4, 5))),
        "tokens": (torch.randn(4, 5, 3), Classification(), torch.randint(3, (4, 5))),
    }[kind]
    for name in ("loss", "score"):
        function = getattr(task, name)
        wanted = function(output[present], target[present])
        torch.testing.assert_close(function(output, target, present=present), wanted)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_scores_and_classifiers_are_those_of_the_present_samples(policy):
    """Broken inputs in the absent rows change nothing of the unimodal side."""
    mask = torch.arange(32) % 3 > 0
    found = []
    for rubbish in (0.0, torch.nan):
        model = partial_model()
        optimizer = wrap(model, policy=policy)
        torch.manual_seed(1)
        ((inputs, target),) = batches(1)
        audio = inputs[0].masked_fill(~mask[:, None], 0)
        loss = F.cross_entropy(model(audio, inputs[1], present={"audio": mask}), target)
        hook = optimizer._model.encoders.hooks[0]
        hook.features = (hook.features[0].masked_fill(~mask[:, None], rubbish),)
        with NoHostRead():
            optimizer.balance(loss, target, present={"audio": mask}).backward()
        found.append([optimizer._state.scores, *(p.grad for p in model.unimodal_classifiers.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.isfinite(found[0][0]).all()


def test_scores_by_hand():
    model = partial_model()
    optimizer = wrap(model, policy=CGGM(), task="classification")
    mask = torch.arange(32) < 5
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs, present={"audio": mask}), target)
    optimizer.balance(loss, target, present={"audio": mask})
    output = model.unimodal_classifiers.audio(model.encoders.audio(inputs[0]))
    wanted = -F.cross_entropy(output[mask], target[mask])
    torch.testing.assert_close(optimizer._state.scores[0, 0], wanted)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_an_encoder_need_not_run_if_no_sample_has_its_modality(policy):
    model = partial_model()
    optimizer = wrap(model, policy=policy)
    for number, (inputs, target) in enumerate(batches(4)):
        optimizer.zero_grad()
        absent = number == 2
        loss = F.cross_entropy(model(None if absent else inputs[0], inputs[1]), target)
        if absent:
            before = {k: v.clone() for k, v in optimizer._state.state.items()}
        optimizer.balance(loss, target, present={"audio": not absent}).backward()
        optimizer.step()
        assert torch.isfinite(optimizer.statistics["coefficients"]).all()
        if absent and isinstance(policy, CGGM):
            after = optimizer._state.state
            assert all(torch.equal(before[k][0], after[k][0]) for k in ("scores", "weights"))
    assert optimizer.statistics["skipped"].tolist() == [0, 0]
    assert torch.isfinite(optimizer.statistics["scores"]).all()


def test_micro_batches_weigh_by_the_samples_that_have_the_modality():
    model = partial_model()
    optimizer, whole = wrap(model, policy=CGGM()), []
    ((inputs, target),) = batches(1)
    mask = torch.arange(32) % 5 == 0
    mask[:8] = False

    def score(rows):
        part = {"audio": mask[rows]}
        loss = F.cross_entropy(model(*(x[rows] for x in inputs), present=part), target[rows])
        optimizer.balance(loss, target[rows], present=part).backward()

    for parts in ([slice(0, 32)], [slice(0, 8), slice(8, 14), slice(14, 32)]):
        optimizer.zero_grad()
        for rows in parts:
            score(rows)
        whole.append(optimizer._state.scores)
        optimizer.zero_grad()
    torch.testing.assert_close(*whole)


@pytest.mark.parametrize("policy", [AGM(), TCMax(), OGMGE(split_head=True)], ids=repr)
def test_policies_that_run_the_fusion_again_are_refused(policy):
    model = partial_model()
    optimizer = wrap(model, policy=policy)
    ((inputs, target),) = batches(1, size=4)
    loss = F.cross_entropy(model(*inputs), target)
    with pytest.raises(ValueError, match="present: AGM"):
        optimizer.balance(loss, target, present={"audio": torch.ones(4, dtype=torch.bool)})


class Plain:
    """A task that cannot leave samples out."""

    def loss(self, output, target):
        return F.cross_entropy(output, target)

    def score(self, output, target):
        return -self.loss(output, target)


@pytest.mark.parametrize(
    ("present", "error", "message"),
    [
        ({"audio": torch.ones(32, dtype=torch.bool)}, TypeError, "loss.* takes no `present`"),
        ({"sound": True}, ValueError, "the modalities are"),
        ({"audio": torch.ones(32)}, TypeError, "must be a bool tensor"),
        ({"audio": torch.ones(3, dtype=torch.bool)}, ValueError, r"must be \[32\]"),
        ([True], TypeError, "must map modalities"),
    ],
)
def test_what_does_not_fit_is_refused(present, error, message):
    model = small_model()
    optimizer = wrap(model, task=Plain())
    ((inputs, target),) = batches(1)
    with pytest.raises(error, match=message):
        optimizer.balance(F.cross_entropy(model(*inputs), target), target, present=present)


def test_a_mask_that_claims_samples_of_an_encoder_that_did_not_run_is_refused():
    model = partial_model()
    optimizer = wrap(model)
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(None, inputs[1]), target)
    with pytest.raises(ValueError, match="its encoder did not run"):
        optimizer.balance(loss, target, present={"audio": torch.ones(32, dtype=torch.bool)})
    with pytest.raises(RuntimeError, match="found no features"):
        optimizer.balance(loss, target)


def test_an_encoder_that_runs_on_the_samples_that_have_its_modality():
    model = small_model()
    optimizer = wrap(model, policy=UnimodalLosses())
    ((inputs, target),) = batches(1)
    present = torch.arange(32) < 20
    for m, x in zip(model.modalities, (inputs[0], inputs[1][present]), strict=True):
        features = model.encoders[m](x)
    with pytest.raises(
        ValueError,
        match=r"encoders\['image'\] puts out features of 20 samples.*with zeros for the samples without",
    ):
        optimizer.balance(features.sum(), target, present={"image": present})
