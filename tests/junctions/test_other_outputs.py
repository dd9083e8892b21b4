"""Several outputs of one encoder: the model uses another one than was selected, or several of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, NormEqualization, UnimodalLosses
from cggm.policies import AGM, DGL, FeaturePareto, MMPareto, ModalityDropout


class TwoLevels(nn.Module):
    """Puts out a low and a high feature, and an unused one."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        low = self.one(x).tanh()
        high = self.two(low)
        return high, {"low": low, "unused": high + 1}


class Model(nn.Module):
    def __init__(self, uses):
        super().__init__()
        self.uses = uses
        self.audio, self.image = TwoLevels(), nn.Linear(6, 4)
        self.head = nn.Linear(4 * (len(uses) + 1), 3)
        self.parts = []

    def forward(self, audio, image):
        high, others = self.audio(audio)
        parts = {"high": high, **others}
        self.parts = [parts[name].expand(len(image), 4) for name in self.uses]
        return self.head(torch.cat([*self.parts, self.image(image)], 1))


def make(uses, policy, output=0, apply="auto"):
    torch.manual_seed(0)
    model = Model(uses)
    encoders = {"audio": Encoder("audio", output=output), "image": "image"}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, CGGMOptimizerWrapper(
        base, model, encoders=encoders, head="head", policy=policy, apply=apply
    )


def backward(model, optimizer, factor=1.0, seed=0):
    torch.manual_seed(seed)
    audio, image, target = torch.randn(6, 8), torch.randn(6, 6), torch.arange(6) % 3
    optimizer.zero_grad()
    optimizer.balance(factor * F.cross_entropy(model(audio, image), target), target).backward()
    return [p.grad.clone() for p in model.audio.parameters() if p.grad is not None]


@pytest.mark.parametrize("policy", [CGGM(), UnimodalLosses(), DGL()])
@pytest.mark.parametrize("output", [0, (1, "unused"), None])
def test_an_output_that_the_model_does_not_use_is_refused_in_the_first_step(policy, output):
    model, optimizer = make(["low"], policy, output)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):  # and in the next one, if somebody goes on
        backward(model, optimizer)
        with pytest.raises(
            RuntimeError, match=r"encoder 'audio': its features .* came back through \(1, 'low'\) alone"
        ):
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_all_outputs_that_the_model_uses_are_scaled():
    results = []
    for apply in ("feature", "gradient"):
        model, optimizer = make(["high", "low"], CGGM(smoothing=0.0), apply=apply)
        for seed in range(4):
            backward(model, optimizer, seed=seed)
            optimizer.step()
        assert not torch.allclose(optimizer.statistics["coefficients"], torch.ones(2))
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("steps", [0, 2])
def test_dgl_keeps_the_multimodal_gradient_from_all_of_them(steps):
    gradients = []
    for factor in (1.0, 100.0):
        model, optimizer = make(["high", "low"], DGL())
        for seed in range(steps):
            backward(model, optimizer, seed=seed)
            optimizer.step()
        gradients.append(backward(model, optimizer, factor, seed=9))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_paused_wrapper_leaves_all_of_them_alone():
    gradients = []
    for policy in (CGGM(), DGL()):
        model, optimizer = make(["high", "low"], policy)
        optimizer.active = False
        gradients.append(backward(model, optimizer))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("policy", [NormEqualization(), FeaturePareto(), UnimodalLosses(weight=2.0)])
def test_combiners_leave_finite_gradients_at_all_of_them(policy):
    model, optimizer = make(["high", "low"], policy)
    for seed in range(3):
        assert all(g.isfinite().all() and g.any() for g in backward(model, optimizer, seed=seed))
        optimizer.step()


def test_dropout_reaches_all_of_them():
    model, optimizer = make(["high", "low"], UnimodalLosses() + ModalityDropout(1.0))
    for seed in range(3):
        backward(model, optimizer, seed=seed)
        high, low = (part.eq(0).all(1) for part in model.parts)
        assert torch.equal(high, low)
        optimizer.step()
    assert high.any()


class Average(TwoLevels):
    """The low feature is one for the whole batch."""

    def forward(self, x):
        high, others = super().forward(x)
        return high, {"low": others["low"].mean(0, keepdim=True)}


def test_dropout_refuses_an_output_whose_samples_it_cannot_find():
    model, optimizer = make(["high", "low"], UnimodalLosses() + ModalityDropout(0.5))
    model.audio.__class__ = Average
    backward(model, optimizer)
    with pytest.raises(RuntimeError, match=r"its output \(1, 'low'\), too, and modality dropout cannot tell"):
        optimizer.step()


def test_mmpareto_refuses_another_output_in_the_backward_pass():
    model, optimizer = make(["high", "low"], MMPareto())
    with pytest.raises(
        RuntimeError, match=r"MMPareto\(\) needs .* the model uses \(1, 'low'\) .* FeaturePareto"
    ):
        backward(model, optimizer)


def test_agm_refuses_several():
    model, optimizer = make(["high", "low"], AGM())
    backward(model, optimizer)
    with pytest.raises(
        RuntimeError, match=r"the model uses its outputs 0, \(1, 'low'\), and this policy runs"
    ):
        optimizer.step()


class Repeating(nn.Module):
    """Puts out its features twice, as models with hidden states do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        features = self.layer(x)
        return features, [features]


class RepeatingModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.image, self.head = Repeating(), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, audio, image):
        return self.head(torch.cat([self.audio(audio)[1][0], self.image(image)], 1))


def test_the_same_features_in_two_places():
    torch.manual_seed(0)
    model = RepeatingModel()
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    encoders = {"audio": "audio", "image": "image"}
    optimizer = CGGMOptimizerWrapper(base, model, encoders=encoders, head="head", policy=DGL())
    gradients = []
    for factor in (1.0, 100.0, 100.0):
        gradients.append(backward(model, optimizer, factor))
        optimizer.step()
    torch.testing.assert_close(gradients[1:], gradients[:1] * 2, rtol=0, atol=0)


def test_an_output_that_the_model_does_not_use_costs_a_view():
    model, optimizer = make(["high"], NormEqualization())
    backward(model, optimizer)
    optimizer.step()
    assert model.audio(torch.randn(6, 8))[1]["unused"]._is_view()
    model, optimizer = make(["high"], CGGM(), apply="gradient")  # does nothing at the outputs
    backward(model, optimizer)
    optimizer.step()
    assert optimizer._model.encoders.hooks[0].others.done


def test_an_output_that_the_model_uses_later_passes_the_junction_from_its_first_use():
    gradients = []
    for factor in (1.0, 100.0):
        model, optimizer = make(["high", "high"], DGL() + ModalityDropout(1.0))
        backward(model, optimizer)
        optimizer.step()
        model.uses = ["high", "low"]
        gradients.append(backward(model, optimizer, factor))
        with pytest.warns(UserWarning, match=r"uses its output \(1, 'low'\) from this step on"):
            optimizer.step()
        backward(model, optimizer)
        high, low = (part.eq(0).all(1) for part in model.parts)
        assert high.any()
        assert torch.equal(high, low)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_agm_refuses_another_output_that_is_used_later():
    model, optimizer = make(["high", "high"], AGM())
    backward(model, optimizer)
    optimizer.step()
    model.uses = ["high", "low"]
    backward(model, optimizer)
    with pytest.raises(RuntimeError, match=r"the model uses its outputs 0, \(1, 'low'\), and this policy"):
        optimizer.step()


def test_mmpareto_refuses_another_output_that_is_used_later():
    model, optimizer = make(["high", "high"], MMPareto())
    backward(model, optimizer)
    optimizer.step()
    model.uses = ["high", "low"]
    with pytest.raises(RuntimeError, match=r"MMPareto\(\) needs .* the model uses \(1, 'low'\)"):
        backward(model, optimizer)


def test_dropout_reaches_an_output_that_needs_no_gradient():
    model, optimizer = make(["high", "low"], UnimodalLosses() + ModalityDropout(1.0))
    model.audio.one.requires_grad_(False)
    for seed in range(2):
        backward(model, optimizer, seed=seed)
        high, low = (part.eq(0).all(1) for part in model.parts)
        assert high.any()
        assert torch.equal(high, low)
        optimizer.step()


class Branches(TwoLevels):
    """Both outputs have layers of their own."""

    def forward(self, x):
        return self.one(x), {"low": self.one(x.detach()) @ self.two.weight}


def test_features_that_need_no_gradient_yet_are_no_wrong_selector():
    model, optimizer = make(["high", "low"], DGL())
    model.audio.__class__ = Branches
    model.audio.one.requires_grad_(False)
    backward(model, optimizer)
    with pytest.warns(UserWarning, match="output 0, which needs no gradient, while the model trains"):
        optimizer.step()
    model.audio.one.requires_grad_(True)
    gradients = [backward(model, optimizer, factor) for factor in (1.0, 100.0)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


class Axes(nn.Module):
    """Puts out features `[B, 4]` beside another tensor, made by a function of `[B, 5, 4]`."""

    def __init__(self, other):
        super().__init__()
        self.layer, self.other = nn.Linear(8, 4), other

    def forward(self, x):
        tokens = self.layer(x)[:, None] * torch.ones(5, 1)
        return tokens.mean(1), {"low": self.other(tokens)}


def seen_with(other, sizes):
    model = Model(["high"])
    model.audio = Axes(other)
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"audio": "audio", "image": "image"},
        head="head",
        policy=UnimodalLosses() + ModalityDropout(1.0),
    )
    outputs = []
    model.audio.register_forward_hook(lambda _, __, output: outputs.append((output[0], output[1]["low"])))
    for size in sizes:
        target = torch.arange(size) % 3
        logits = model(torch.randn(size, 8), torch.randn(size, 6))
        loss = F.cross_entropy(logits, target) + outputs[-1][1].square().sum()
        optimizer.balance(loss, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return outputs


@pytest.mark.parametrize("sizes", [(8, 5), (4, 8), (5,)])
def test_the_first_axis_holds_the_samples_where_several_fit(sizes):
    for features, tokens in seen_with(lambda tokens: tokens, sizes):
        assert torch.equal(features.eq(0).all(1), tokens.eq(0).all(2).all(1))


def test_an_axis_that_once_held_the_samples_alone_holds_them_from_then_on():
    *_, (features, states) = seen_with(lambda tokens: tokens.transpose(0, 1), (8, 5))  # [5, B, 4]
    assert features.eq(0).all(1).any()
    assert torch.equal(features.eq(0).all(1), states.eq(0).all(2).all(0))


def test_a_scalar_is_never_dropped():
    assert all(scalar.any() for _, scalar in seen_with(lambda tokens: tokens.square().mean(), (8, 8)))


def test_rows_that_are_no_samples_are_refused_however_wide_they_are():
    with pytest.raises(RuntimeError, match="modality dropout cannot tell which axis"):
        seen_with(lambda tokens: tokens.flatten(0, 1), (4,))  # [20, 4]: as wide as there are samples


@pytest.mark.parametrize("policy", [DGL(), CGGM(smoothing=0.0)])
def test_compiled(policy):
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model, optimizer = make(["high", "low"], policy)
        if compiled:
            model.compile(backend="aot_eager")
        for seed in range(3):
            backward(model, optimizer, seed=seed)
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results)
