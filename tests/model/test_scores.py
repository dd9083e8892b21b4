"""Scores without unimodal classifiers: the model itself with the other modalities masked, or retrieval."""

import copy
import gc
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, MaskedScores, ModalityDropout, NormEqualization, RetrievalScores
from cggm.policies import AGM, DGL, MIMO, MLB, OGMGE, OPM, SMP, Policy, TCMax, UnimodalLosses
from helpers import NoHostRead, SmallModel, batches, flat, small_model, wrap

EVERY_STEP = MaskedScores(every=1)
READING = {
    "CGGM": CGGM(),
    "OGM-GE": OGMGE(),
    "MLB": MLB(),
    "SMP": SMP(stage_steps=3, epoch_steps=3),
    "OPM": OPM(),
    "dropout": ModalityDropout(0.3),
}


def masked(model, policy=None, scores=EVERY_STEP, **options):
    return wrap(model, policy=policy, **{"scores": scores, "head": None} | options)


def step(model, optimizer, inputs, target):
    optimizer.zero_grad()
    optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
    optimizer.step()


@torch.no_grad()
def alone(model, inputs, target):
    """By hand: the loss for each modality, the other encoder's output set to zero."""
    losses = []
    for kept in model.modalities:
        features = [model.encoders[m](x) * (m == kept) for m, x in zip(model.modalities, inputs, strict=True)]
        hidden = model.fusion(torch.cat([x.relu() for x in features], 1)).relu()
        losses.append(F.cross_entropy(model.head(hidden), target))
    return torch.stack(losses)


@pytest.mark.parametrize("name", READING)
def test_every_policy_that_reads_scores_trains_without_classifiers(name):
    model = small_model()
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = masked(model, READING[name])
    for inputs, target in batches(6):
        expected = alone(model, inputs, target)
        step(model, optimizer, inputs, target)
        if name in ("CGGM", "dropout"):
            torch.testing.assert_close(optimizer.statistics["scores"], -expected)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert optimizer.statistics["coefficients"].shape == (2,)


def test_the_score_is_the_tasks_on_the_masked_models_output():
    model, (inputs, target) = small_model(), next(batches(1))
    optimizer = masked(model, CGGM.paper(lam=0.0), task="classification")
    step(model, optimizer, inputs, target)
    assert ((optimizer.statistics["scores"] * len(target)) % 1 == 0).all()  # an accuracy
    optimizer = masked(small_model(), OGMGE())
    step(optimizer._model.module, optimizer, inputs, target)
    assert ((optimizer.statistics["scores"] > 0) & (optimizer.statistics["scores"] < 1)).all()


class Noisy(SmallModel):
    """With batch norm and dropout, after the encoders and in them."""

    def __init__(self):
        super().__init__()
        self.encoders["audio"] = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.fusion = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))


def test_random_numbers_buffers_modes_and_gradients_stay_as_they_were():
    torch.manual_seed(0)
    model = Noisy()
    model.fusion[1].eval()
    plain = copy.deepcopy(model)
    optimizer = masked(model, Policy())
    base = torch.optim.SGD(plain.parameters(), lr=0.1)
    states = []
    for each, its in ((plain, None), (model, optimizer)):
        torch.manual_seed(5)
        for inputs, target in batches(4):
            loss = F.cross_entropy(each(*inputs), target)
            (its or base).zero_grad()
            (loss if its is None else its.balance(loss, target)).backward()
            (its or base).step()
        states.append((flat(each), torch.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])  # buffers, too
    assert torch.equal(states[0][1], states[1][1])
    assert model.fusion[2].training
    assert not model.fusion[1].training


@pytest.mark.parametrize("policy", [CGGM(smoothing=0.5), MLB()], ids=["CGGM", "MLB"])
def test_between_two_measurements_scores_and_coefficients_stand(policy):
    model, seen, runs = small_model(), [], []
    optimizer = masked(model, policy, MaskedScores(every=3))
    model.fusion.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    for inputs, target in batches(7):
        step(model, optimizer, inputs, target)
        seen.append(torch.cat([optimizer.statistics["scores"], optimizer.statistics["coefficients"]]))
    assert runs.count(False) == 3 * 2  # steps 0, 3 and 6, two modalities
    for number in (1, 2, 4, 5):
        assert torch.equal(seen[number], seen[number - 1])
    assert not torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[6][2:], torch.ones(2))


def test_micro_batches_count_by_their_samples_and_standing_scores_are_of_the_whole_step():
    model, whole, parts = small_model(), next(batches(1)), []
    optimizer = masked(model, MLB(), MaskedScores(every=2))
    (audio, image), target = whole
    for start, end in ((0, 8), (8, 32)):
        part = [audio[start:end], image[start:end]], target[start:end]
        loss = F.cross_entropy(model(*part[0]), part[1])
        parts.append((alone(model, *part), end - start))
        optimizer.balance(loss, part[1]).backward()
    optimizer.modulate()
    losses = sum(losses * size for losses, size in parts) / 32
    optimizer.step()
    confidence = optimizer.statistics["scores"]
    assert ((confidence > 0) & (confidence < 1)).all()
    assert losses.isfinite().all()
    step(model, optimizer, *whole)
    torch.testing.assert_close(optimizer.statistics["scores"], confidence)


def test_no_value_is_read_on_the_host():
    model, (inputs, target) = small_model(), next(batches(1))
    optimizer = masked(model, CGGM())
    step(model, optimizer, inputs, target)
    with NoHostRead():
        optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
        optimizer.modulate()


def test_a_captured_step_measures_always(monkeypatch):
    model, (inputs, target) = small_model(), next(batches(1))
    optimizer = masked(model, CGGM(), MaskedScores(every=2))
    monkeypatch.setattr("cggm.optim.step_state.capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"MaskedScores\(every=1\)"):
        step(model, optimizer, inputs, target)


def test_a_checkpoint_holds_the_policys_state():
    model, data = small_model(), list(batches(6))
    optimizer = masked(model, CGGM(smoothing=0.5))
    for batch in data[:3]:
        step(model, optimizer, *batch)
    twin = small_model(seed=3)
    resumed = masked(twin, CGGM(smoothing=0.5))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for batch in data[3:]:
        step(model, optimizer, *batch)
        step(twin, resumed, *batch)
    assert torch.equal(flat(model), flat(twin))
    optimizer.detach()
    assert set(model.state_dict()) == set(small_model().state_dict())


class Wrapped(SmallModel):
    """Puts out what models of transformers put out; the encoder runs twice."""

    def forward(self, audio, image, labels=None):
        half = len(audio) // 2
        features = torch.cat([self.encoders["audio"](audio[:half]), self.encoders["audio"](audio[half:])])
        image = torch.cat([self.encoders["image"](image[:half]), self.encoders["image"](image[half:])])
        logits = self.head(self.fusion(torch.cat([features, image], 1).relu()).relu())
        loss = None if labels is None else F.cross_entropy(logits, labels, label_smoothing=0.1)
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.mark.parametrize(
    ("task", "labels"),
    [(None, True), (lambda output, target: output.loss, True), (None, False), ("classification", False)],
    ids=["own loss", "function", "logits", "named task"],
)
def test_outputs_with_logits_and_a_loss(task, labels):
    torch.manual_seed(0)
    model, ((audio, image), target) = Wrapped(), next(batches(1))
    optimizer = masked(model, CGGM(), task=task)
    output = model(audio, image, labels=target if labels else None)
    loss = output.loss if labels else F.cross_entropy(output.logits, target)
    with torch.no_grad():
        zero = torch.zeros(len(audio), 4)
        kept = [model.encoders["audio"](audio), zero], [zero, model.encoders["image"](image)]
        logits = [model.head(model.fusion(torch.cat(each, 1).relu()).relu()) for each in kept]
    smoothing = 0.1 if labels else 0.0
    expected = [F.cross_entropy(each, target, label_smoothing=smoothing) for each in logits]
    optimizer.balance(loss, None if labels else target).backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.statistics["scores"], -torch.stack(expected))


def test_outputs_that_cannot_be_scored_say_what_to_pass():
    class Boxes(SmallModel):
        def forward(self, *inputs):
            return {"boxes": super().forward(*inputs)}

    torch.manual_seed(0)
    model, (inputs, target) = Boxes(), next(batches(1))
    optimizer = masked(model, CGGM())
    loss = F.cross_entropy(model(*inputs)["boxes"], target)
    with pytest.raises(TypeError, match=r"a dict without logits.*task=lambda output, target"):
        optimizer.balance(loss, target)
    optimizer.detach()
    optimizer = masked(model, CGGM(), task=lambda output, target: output["boxes"])
    loss = F.cross_entropy(model(*inputs)["boxes"], target)
    with pytest.raises(TypeError, match=r"a 0-dimensional tensor, got \[32, 3\]"):
        optimizer.balance(loss, target)


def test_a_loss_of_several_calls_is_refused():
    model, (inputs, target) = small_model(), next(batches(1))
    optimizer = masked(model, CGGM())
    loss = F.cross_entropy(model(*inputs), target) + F.cross_entropy(model(*inputs), target)
    with pytest.raises(RuntimeError, match="several calls of the model"):
        optimizer.balance(loss, target)


@pytest.mark.parametrize(
    ("policy", "scores", "message"),
    [
        (NormEqualization(bounded=True) + ModalityDropout(0.2, fill=1e-6), "masked", "which is the default"),
        (UnimodalLosses(), "masked", "unimodal losses, which need unimodal classifiers.*policy=CGGM"),
        (DGL(), "masked", r"DGL\(\) combines"),
        (UnimodalLosses() + MIMO(), "masked", "combines"),
        (CGGM(lam=0.2), "masked", "lam=0 does not"),
        (AGM(), "masked", r"AGM\(\) takes its scores from the head"),
        (OGMGE(split_head=True), "masked", "leave scores out"),
        (TCMax(), "masked", "head is None"),
        (OPM(), "retrieval", "has no pair"),
        (CGGM(), "mask", "one of .*'masked', 'retrieval'"),
    ],
)
def test_what_needs_classifiers_is_refused_with_the_choice_to_make(policy, scores, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        masked(model, policy, scores)
    assert set(model.state_dict()) == set(small_model().state_dict())


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="every must be a whole number"):
        MaskedScores(every=0)
    with pytest.raises(ValueError, match="temperature must be"):
        RetrievalScores(temperature=0)
    with pytest.raises(TypeError, match="scores must be"):
        masked(small_model(), CGGM(), None)
    with pytest.raises(ValueError, match="it has a classifier"):
        masked(small_model(), CGGM(), classifiers={"audio": 4})


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, image, text):
        return F.normalize(self.image(image), dim=1) @ F.normalize(self.text(text), dim=1).T / 0.07


def towers(policy, **options):
    torch.manual_seed(0)
    model = Towers()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"encoders": {"image": "image", "text": "text"}, "scores": "retrieval"} | options
    return model, CGGMOptimizerWrapper(base, model, policy=policy, **options)


def contrastive(logits):
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_retrieval_scores_are_the_rows_of_the_contrastive_loss():
    model, optimizer = towers(CGGM())
    logits = model(torch.randn(8, 6), torch.randn(8, 5))
    optimizer.balance(contrastive(logits)).backward()
    optimizer.step()
    target = torch.arange(8)
    rows = torch.stack([F.cross_entropy(each, target) for each in (logits, logits.T)])
    torch.testing.assert_close(optimizer.statistics["scores"], -rows.detach())


def test_a_modality_whose_embeddings_are_alike_falls_behind():
    model, optimizer = towers(MLB())
    with torch.no_grad():
        model.image.weight.copy_(model.text.weight.new_tensor([[0.0] * 6, *[[0.05] * 6] * 3]))
        model.image.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    logits = model(torch.randn(64, 6), torch.randn(64, 5))
    optimizer.balance(contrastive(logits)).backward()
    optimizer.step()
    image, text = optimizer.statistics["coefficients"].tolist()
    assert image > text


def test_embeddings_that_cannot_be_compared_are_refused():
    model, (inputs, target) = small_model(), next(batches(1))
    model.encoders["image"][2] = nn.Linear(16, 4)
    optimizer = masked(model, CGGM(), "retrieval")
    model.encoders["image"] = nn.Linear(6, 5)
    model.fusion = nn.Linear(9, 8)
    optimizer.detach()
    optimizer = masked(model, CGGM(), "retrieval")
    loss = F.cross_entropy(model(*inputs), target)
    with pytest.raises(ValueError, match=r"embeddings \[B, D\] of one shape.*\[tower, projection\]"):
        optimizer.balance(loss)


def watchers_of(model):
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return [hook for hook in hooks if "masked" in type(getattr(hook, "_owner", hook)).__module__]


def test_hooks_of_masked_scores_end_with_their_wrapper_and_leave_with_the_next():
    model = small_model()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = masked(model, CGGM(), base=base)
    ((inputs, target),) = batches(1)
    step(model, optimizer, inputs, target)
    kept, twin = optimizer._model.masked, copy.deepcopy(model)
    del optimizer
    gc.collect()
    for each in (model, twin):
        each(*inputs)
    assert not kept.outputs
    assert watchers_of(twin)
    assert not any(hook._owner.outputs for hook in watchers_of(twin))
    again = masked(model, CGGM(), base=base)
    step(model, again, inputs, target)
    again.detach()
    assert not watchers_of(model)


def test_a_model_without_a_head_is_recorded_and_explained():
    model = small_model()
    optimizer = masked(model, CGGM())
    ((inputs, target),) = batches(1)
    assert "audio" in str(optimizer.explain(lambda: F.cross_entropy(model(*inputs), target), target))
    optimizer.record = True
    step(model, optimizer, inputs, target)
    assert optimizer.statistics["grad_norms"].shape == (2,)


class TakesApart(SmallModel):
    """Takes its inputs out of a dictionary."""

    def forward(self, batch):
        return super().forward(batch.pop("audio"), batch.pop("image"))


def test_a_model_that_takes_its_inputs_apart():
    model, plain = TakesApart(), small_model()
    plain.load_state_dict(model.state_dict())
    ((inputs, target),) = batches(1)
    scores = []
    for each, arguments in ((model, [dict(zip(model.modalities, inputs, strict=True))]), (plain, inputs)):
        optimizer = masked(each, CGGM())
        optimizer.balance(F.cross_entropy(each(*arguments), target), target).backward()
        optimizer.step()
        scores.append(optimizer.statistics["scores"])
    assert torch.equal(*scores)


def test_masked_scores_warn_of_no_frozen_classifiers():
    model = small_model()
    optimizer = masked(model, CGGM())
    ((inputs, target),) = batches(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer, inputs, target)
