"""Third-party optimizers and all modes of torch's own: options, sparse gradients, freezing, groups."""

import copy
import inspect

import lion_pytorch
import muon
import pytest
import schedulefree
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, ClassifierScores, UnimodalLosses
from cggm.optim.base import complete_state
from helpers import CLASSES, backward, batches, flat, small_model, train, wrap

APPLICATIONS = ["feature", "gradient", "update"]


def mean_loss(losses):
    return torch.stack(losses).mean()


def learns(model, optimizer, steps=150):
    losses = train(model, optimizer, steps=steps)
    assert torch.isfinite(flat(model)).all()
    assert mean_loss(losses[-10:]) < 0.98 * mean_loss(losses[:10])


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.6 has no Muon")


def of_torch():
    """The classes that torch.optim offers, whichever version is installed."""
    classes = [c for c in vars(torch.optim).values() if inspect.isclass(c)]
    names = ("LBFGS", "Muon", "SparseAdam", "Optimizer")
    refused = tuple(getattr(torch.optim, name) for name in names if hasattr(torch.optim, name))
    return [c for c in classes if issubclass(c, torch.optim.Optimizer) and c not in refused]


@pytest.mark.parametrize("base", of_torch(), ids=lambda c: c.__name__)
def test_every_optimizer_of_torch_learns_and_resumes_bit_for_bit(base):
    lr = {"Adadelta": 1.0, "SGD": 0.1, "ASGD": 0.1}.get(base.__name__, 0.01)
    model = small_model()
    optimizer = wrap(model, base(model.parameters(), lr=lr), CGGM(smoothing=0.5))
    learns(model, optimizer)
    twin = small_model(seed=9)
    resumed = wrap(twin, base(twin.parameters(), lr=lr), CGGM(smoothing=0.5))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (twin, resumed)):
        train(each, its, steps=3, seed=4)
    assert torch.equal(flat(twin), flat(model))


def test_adagrad_gets_the_state_of_parameters_added_later():
    """torch 2.11 makes it in the constructor alone; later versions in the step as well."""
    first, later = nn.Linear(2, 3), nn.Linear(3, 2)
    optimizer = torch.optim.Adagrad(first.parameters(), initial_accumulator_value=0.25)
    optimizer.state[first.weight]["sum"].fill_(7.0)
    optimizer.add_param_group({"params": list(later.parameters())})
    complete_state(optimizer)
    assert optimizer.state[later.weight]["step"] == 0
    assert torch.equal(optimizer.state[later.weight]["sum"], torch.full((2, 3), 0.25))
    assert torch.equal(optimizer.state[first.weight]["sum"], torch.full((3, 2), 7.0))  # left alone


def muon_with_adam(model):
    matrices = [p for p in model.encoders.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    groups = [
        {"params": rest, "use_muon": False, "lr": 0.01},
        {"params": matrices, "use_muon": True, "lr": 0.02},
    ]
    return muon.SingleDeviceMuonWithAuxAdam(groups)


THIRD_PARTY = {
    "lion": lambda m: lion_pytorch.Lion(m.parameters(), lr=1e-3),
    "schedule-free AdamW": lambda m: schedulefree.AdamWScheduleFree(m.parameters(), lr=0.01, warmup_steps=5),
    "schedule-free SGD": lambda m: schedulefree.SGDScheduleFree(m.parameters(), lr=0.3),
    "schedule-free RAdam": lambda m: schedulefree.RAdamScheduleFree(m.parameters(), lr=0.01),
    "Muon with an auxiliary Adam": muon_with_adam,
}


@pytest.mark.parametrize("name", THIRD_PARTY)
@pytest.mark.parametrize("apply", APPLICATIONS)
def test_optimizers_from_other_packages(name, apply):
    model = small_model()
    base = THIRD_PARTY[name](model)
    optimizer = wrap(model, base, CGGM(smoothing=0.5), apply=apply)
    if hasattr(base, "train"):
        base.train()  # schedule-free optimizers keep their own two modes; the wrapper does not stand between
    learns(model, optimizer)
    if hasattr(base, "train"):
        base.eval()
        base.train()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, steps=1)


class EightBit(torch.optim.Optimizer):
    """Momentum kept as int8 with one scale per tensor, as 8-bit optimizers do, in plain torch."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"codes": torch.zeros_like(p, dtype=torch.int8), "scale": torch.ones(())}
                momentum = 0.9 * state["codes"].float() * state["scale"] + p.grad
                state["scale"] = momentum.abs().max().clamp_min(1e-12) / 127
                state["codes"] = (momentum / state["scale"]).round().to(torch.int8)
                p.add_(momentum, alpha=-group["lr"])


@pytest.mark.parametrize("apply", APPLICATIONS)
def test_an_optimizer_with_eight_bit_state(apply):
    model = small_model()
    optimizer = wrap(model, EightBit(model.parameters(), lr=0.03), CGGM(smoothing=0.5), apply=apply)
    learns(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["codes"].dtype == torch.int8


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            lambda m: torch.optim.LBFGS(m.parameters()),
            "optimizer cannot be LBFGS: it evaluates the loss many",
        ),
        pytest.param(
            lambda m: torch.optim.Muon([m.head.weight]),
            "optimizer cannot be Muon: it takes matrices only",
            marks=needs_muon,
        ),
        (
            lambda m: torch.optim.SparseAdam([m.head.weight]),
            "optimizer cannot be SparseAdam: it takes sparse",
        ),
    ],
)
def test_optimizers_that_cannot_drive_the_classifiers_are_refused(base, message):
    model = small_model()
    before = set(model.state_dict()), len(list(model.modules()))
    with pytest.raises(TypeError, match=message):
        wrap(model, base(model))
    assert (set(model.state_dict()), len(list(model.modules()))) == before


@needs_muon
@pytest.mark.parametrize("apply", ["feature", "gradient"])
def test_two_optimizers_side_by_side(apply):
    """The wrapper modulates every gradient of an encoder, also where another optimizer takes the step."""
    model = small_model()
    matrices = [p for p in model.encoders.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    beside = torch.optim.Muon(matrices, lr=0.02)
    optimizer = wrap(model, torch.optim.AdamW(rest, lr=0.01), CGGM(smoothing=0.5), apply=apply)
    losses = []
    for inputs, target in batches(100):
        optimizer.zero_grad()
        beside.zero_grad()
        losses.append(backward(model, optimizer, inputs, target))
        optimizer.modulate()
        beside.step()
        optimizer.step()
    assert mean_loss(losses[-10:]) < 0.98 * mean_loss(losses[:10])


def test_an_update_that_this_optimizer_does_not_make_cannot_be_scaled():
    model = small_model()
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoders.audio")]
    with pytest.raises(ValueError, match=r"apply='update'.*'audio'.*'gradient' or 'feature'"):
        wrap(model, torch.optim.AdamW(rest, lr=0.01), apply="update")


OPTIONS = {
    "foreach": {"foreach": True},
    "for loop": {"foreach": False},
    "fused": {"fused": True},
    "tensor lr": {"lr": torch.tensor(0.01), "foreach": False},
    "fused with tensor lr": {"lr": torch.tensor(0.01), "fused": True},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("apply", APPLICATIONS)
def test_every_way_to_run_adamw(option, apply):
    """With coefficients of 1 the wrapped step is the plain one, whichever implementation makes it."""
    options = {"lr": 0.01, **OPTIONS[option]}
    results = []
    for wrapped in (False, True):
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        if wrapped:
            optimizer = wrap(model, optimizer, CGGM(smoothing=0.999999), apply=apply)  # B never leaves 1
        for inputs, target in batches(5):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*inputs), target)
            (optimizer.balance(loss, target) if wrapped else loss).backward()
            optimizer.step()
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


def test_capturable_is_passed_through():
    model = small_model()
    base = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), capturable=True, foreach=True)
    optimizer = wrap(model, base)
    assert optimizer.param_groups[1]["capturable"]
    try:
        train(model, optimizer, steps=2)  # on a CPU torch refuses, with or without the wrapper
    except (AssertionError, RuntimeError) as error:
        assert "capturable" in str(error)  # noqa: PT017


def test_groups_keep_their_own_rate_and_decay():
    model = small_model()
    encoders, fusion = (
        list(model.encoders.parameters()),
        [*model.fusion.parameters(), *model.head.parameters()],
    )
    groups = [
        {"params": encoders, "lr": 0.0, "weight_decay": 0.0},
        {"params": fusion, "lr": 0.1, "weight_decay": 0.1},
    ]
    optimizer = wrap(model, torch.optim.SGD(groups, lr=0.5), scores=ClassifierScores(lr=0.05))
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.1, 0.05]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1, 0.1]  # the head's
    before = [p.detach().clone() for p in encoders], model.head.weight.detach().clone()
    train(model, optimizer, steps=3)
    assert all(torch.equal(p, q) for p, q in zip(encoders, before[0], strict=True))
    assert not torch.equal(model.head.weight, before[1])


def test_classifiers_whose_parameters_the_optimizer_already_has():
    model = small_model()
    classifiers = {
        m: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES)) for m in model.modalities
    }
    own = [p for c in classifiers.values() for p in c.parameters()]
    base = torch.optim.AdamW([{"params": model.parameters()}, {"params": own, "lr": 0.03}], lr=0.01)
    optimizer = wrap(model, base, classifiers=classifiers)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.03]
    learns(model, optimizer)


@pytest.mark.parametrize("apply", APPLICATIONS)
def test_unfreezing_later(apply):
    model = small_model()
    model.encoders["audio"].requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        optimizer = wrap(model, policy=CGGM(rho=0.0, smoothing=0.5), apply=apply)
    frozen = flat(model.encoders["audio"])
    train(model, optimizer, steps=2)
    model.encoders["audio"].requires_grad_(True)
    train(model, optimizer, steps=2, seed=5)
    assert torch.equal(flat(model.encoders["audio"]), frozen)  # ρ = 0: modulated as soon as it learns
    optimizer = wrap(small_model(), policy=CGGM(), apply=apply)  # and ρ = 1 from the start, for contrast
    train(optimizer._model.module, optimizer, steps=2)
    assert not torch.equal(
        flat(optimizer._model.module.encoders["audio"]), flat(small_model().encoders["audio"])
    )


@pytest.mark.parametrize("apply", APPLICATIONS)
def test_parameters_that_no_loss_uses(apply):
    model = small_model()
    model.encoders["audio"].register_parameter("spare", nn.Parameter(torch.ones(3)))
    optimizer = wrap(model, policy=CGGM(smoothing=0.5), apply=apply)
    train(model, optimizer, steps=3)
    assert torch.equal(model.encoders["audio"].spare, torch.ones(3))
    assert torch.isfinite(optimizer.statistics["grad_norms"]).all()


class Words(nn.Module):
    """An embedding with sparse gradients beside a dense encoder."""

    def __init__(self, sparse=True):
        super().__init__()
        self.text = nn.EmbeddingBag(50, 4, sparse=sparse)
        self.image = nn.Linear(6, 4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, words, image):
        return self.head(torch.cat([self.text(words), self.image(image)], 1).relu())


def words(count):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        text = torch.randint(10, (16, 5), generator=generator)  # every row repeats words: not coalesced
        image = torch.randn(16, 6, generator=generator)
        yield text, image, (text.sum(1) + (image[:, 0] > 0)) % CLASSES


def train_words(model, optimizer, steps):
    norms = []
    for text, image, target in words(steps):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(text, image), target), target).backward()
        optimizer.step()
        norms.append(optimizer.statistics["grad_norms"].clone())
    return torch.stack(norms)


@pytest.mark.parametrize("base", ["sgd", "adagrad"])
@pytest.mark.parametrize("apply", APPLICATIONS)
def test_sparse_gradients_train_as_dense_ones_do(apply, base):
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = Words(sparse)
        base_class = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[base]
        optimizer = CGGMOptimizerWrapper(
            base_class(model.parameters(), lr=0.1),
            model,
            encoders={"text": "text", "image": "image"},
            head="head",
            policy=CGGM(smoothing=0.3),
            apply=apply,
        )
        norms = train_words(model, optimizer, steps=6)
        assert model.text.weight.grad.is_sparse == sparse
        results.append((flat(model), norms))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_sparse_adam_beside_the_wrapped_optimizer():
    model = Words()
    beside = torch.optim.SparseAdam(model.text.parameters(), lr=0.01)
    rest = [*model.image.parameters(), *model.head.parameters()]
    optimizer = CGGMOptimizerWrapper(
        torch.optim.AdamW(rest, lr=0.01),
        model,
        encoders={"text": "text", "image": "image"},
        head="head",
        policy=CGGM(),
        apply="gradient",
    )
    before = model.text.weight.detach().clone()
    for text, image, target in words(3):
        optimizer.zero_grad()
        beside.zero_grad()
        optimizer.balance(F.cross_entropy(model(text, image), target), target).backward()
        optimizer.modulate()
        beside.step()
        optimizer.step()
    assert not torch.equal(model.text.weight, before)
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize(
    "policy", [CGGM(lam=0.1), CGGM.paper(rho=1.0), CGGM.released(rho=1.0), UnimodalLosses()], ids=repr
)
def test_float16_autocast_with_a_scaler_and_clipping(policy):
    """Unscale, modulate, clip, step: the order that the documentation gives."""
    model = small_model()
    parameters = list(model.parameters())
    optimizer = wrap(model, torch.optim.AdamW(parameters, lr=0.01), policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    losses = []
    for inputs, target in batches(120):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(*inputs), target)
        losses.append(loss.detach())
        scaler.scale(optimizer.balance(loss, target)).backward()
        scaler.unscale_(optimizer)
        optimizer.modulate()
        nn.utils.clip_grad_norm_(parameters, 0.8)
        scaler.step(
            optimizer
        )  # skipped where float16 overflowed, as the paper's unbounded terms do now and then
        scaler.update()
    assert torch.isfinite(flat(model)).all()
    assert mean_loss(losses[-10:]) < 0.98 * mean_loss(losses[:10])


def test_modulating_before_unscaling_gives_the_same_step():
    """Coefficients multiply and the rotation is homogeneous, so the scale commutes with both."""
    results = []
    for early in (False, True):
        model = small_model()
        optimizer = wrap(model, policy=CGGM(smoothing=0.3, lam=0.1), apply="gradient")
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for inputs, target in batches(4):
            optimizer.zero_grad()
            loss = optimizer.balance(F.cross_entropy(model(*inputs), target), target)
            scaler.scale(loss).backward()
            if early:
                optimizer.modulate()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(flat(model))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("apply", APPLICATIONS)
def test_clipping_between_backward_and_step_sees_modulated_gradients(apply):
    model = small_model()
    optimizer = wrap(model, policy=CGGM(rho=100.0, smoothing=0.999999), apply=apply)
    parameters = list(model.encoders.parameters())
    for inputs, target in batches(2):
        optimizer.zero_grad()
        before = flat(model)
        backward(model, optimizer, inputs, target)
        optimizer.modulate()
        norm = nn.utils.clip_grad_norm_(parameters, 1e-3)
        optimizer.step()
        moved = (flat(model) - before)[: sum(p.numel() for p in parameters)].norm()
        limit = 0.1 * 1e-3 * (100.0 if apply == "update" else 1.0)  # an update is scaled after clipping
        assert norm > 1e-3
        assert moved <= 1.001 * limit
