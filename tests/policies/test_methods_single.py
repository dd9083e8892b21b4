"""What single methods do inside the wrapper beyond their arithmetic: noise, masked passes, two backward passes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm import UnimodalLosses
from cggm.optim.scaling import add_noise_, deviations
from cggm.policies import AGM, CGGM, OGMGE, Joint, MMPareto, Objective, TCMax
from helpers import SmallModel, backward, batches, flat, small_model, train, wrap

THREE = ("audio", "image", "text")


def test_noise_has_each_gradients_own_deviation():
    torch.manual_seed(0)
    parameters = [
        nn.Parameter(torch.zeros(300, 300)),
        nn.Parameter(torch.zeros(90_000)),
        nn.Parameter(torch.zeros(1)),
    ]
    gradients = [torch.randn(300, 300) * 3 + 5, torch.randn(90_000) * 1e-3, torch.ones(1)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    owned = [(p, 0) for p in parameters]
    strengths = deviations(owned)
    torch.testing.assert_close(strengths[0], gradients[0].std() + 1e-8)
    add_noise_(owned, strengths)
    for parameter, gradient, expected in zip(parameters[:2], gradients, (3, 1e-3), strict=False):
        noise = parameter.grad - gradient
        assert noise.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(noise.mean().item()) < 0.02 * expected
    torch.testing.assert_close(parameters[2].grad, gradients[2], rtol=0, atol=1e-6)


def test_noise_stays_within_the_encoders_and_follows_the_seed():
    gradients = []
    for policy, seed in [(Joint(), 0), (OGMGE(0.0), 0), (OGMGE(0.0), 0), (OGMGE(0.0), 1)]:
        model = small_model()
        optimizer = wrap(model, policy=policy)
        ((inputs, target),) = batches(1)
        backward(model, optimizer, inputs, target)
        torch.manual_seed(seed)
        optimizer.modulate()
        rest = [p.grad for module in (model.fusion, model.head) for p in module.parameters()]
        gradients.append(([p.grad for p in model.encoders.parameters()], rest))
    plain, noisy, again, other = gradients
    torch.testing.assert_close(plain[1], noisy[1], rtol=0, atol=0)
    assert all(not torch.equal(a, b) for a, b in zip(plain[0], noisy[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(noisy[0], again[0], strict=True))
    assert not torch.equal(noisy[0][0], other[0][0])


class Stirring(SmallModel):
    """A fusion that behaves differently in training and evaluation."""

    def __init__(self, modalities):
        super().__init__(modalities)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.dropout.eval()  # frozen so by the user

    def forward(self, *inputs, bonus=0.0):
        features = [self.encoders[m](x).relu_() for m, x in zip(self.modalities, inputs, strict=True)]
        return self.head(self.dropout(self.norm(self.fusion(torch.cat(features, 1)))).relu_() + bonus)


def test_masked_passes_run_in_evaluation_mode_and_encoders_once():
    torch.manual_seed(0)
    model = Stirring(THREE)
    optimizer = wrap(model, policy=AGM(1.0))
    runs = []
    for modality in THREE:
        model.encoders[modality][0].register_forward_hook(lambda *_: runs.append(1))
    for inputs, target in batches(4, THREE):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*inputs, bonus=0.1), target)
        optimizer.balance(loss, target).backward()
        optimizer.step()
    assert len(runs) == 3 * 4
    assert model.norm.num_batches_tracked == 4
    assert [module.training for module in (model, model.norm, model.dropout)] == [True, True, False]
    assert all("forward" not in vars(model.encoders[m]) for m in THREE)


def test_responses_need_a_forward_pass_of_the_whole_model():
    model = small_model()
    optimizer = wrap(model, policy=AGM(1.0))
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model.forward(*inputs), target)
    with pytest.raises(RuntimeError, match="forward pass of the whole model"):
        optimizer.balance(loss, target)


def test_five_modalities_sample_their_orders():
    class Five(nn.Module):
        modalities = tuple("abcde")

        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleDict({m: nn.Linear(3, 4) for m in self.modalities})
            self.head = nn.Linear(20, 3)

        def forward(self, x):
            return self.head(torch.cat([self.encoders[m](x) for m in self.modalities], 1).tanh())

    torch.manual_seed(0)
    model = Five()
    optimizer = wrap(model, policy=AGM(1.0, permutations=2))
    x, target = torch.randn(16, 3), torch.randint(3, (16,))
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.balance(F.cross_entropy(model(x), target), target).backward()
        optimizer.step()
    assert optimizer.statistics["coefficients"].shape == (5,)
    assert optimizer.statistics["competition"].shape == (5,)


@pytest.mark.parametrize("policy", [OGMGE(0.3), AGM(1.0)], ids=repr)
def test_a_task_without_confidences(policy):
    class Ranking:
        def loss(self, output, target):
            return F.multi_margin_loss(output, target)

        def score(self, output, target):
            return output.gather(1, target[:, None]).mean()

    model = small_model()
    optimizer = wrap(model, policy=policy, task=Ranking())
    train(model, optimizer, steps=2)
    scores = optimizer.statistics["scores"]
    assert (scores > 0).all() if policy.noise else (scores < 0).all()


def test_a_trainable_input_of_an_encoder_is_left_alone_by_mmpareto():
    model = small_model()
    optimizer = wrap(model, policy=MMPareto())
    ((inputs, _),) = batches(1)
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"encoder 'audio'.*before its input"):
        model(*inputs)
    assert optimizer.modalities == ("audio", "image")


def test_parameters_whose_gradients_are_one_tensor():
    class Shifted(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, 4)
            self.one, self.other, self.unused = (nn.Parameter(torch.zeros(32, 4)) for _ in range(3))

        def forward(self, x):
            return self.layer(x) + self.one + self.other

    def gradients(policy, chosen):
        torch.manual_seed(0)
        model = small_model()
        model.encoders["audio"], model.encoders["image"] = Shifted(8), Shifted(6)
        classifiers = {m: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)) for m in model.modalities}
        optimizer = wrap(model, policy=policy, classifiers=classifiers)
        for number, (inputs, target) in enumerate(batches(2)):
            if number in chosen:
                backward(model, optimizer, inputs, target)
        encoder = model.encoders["audio"]
        assert encoder.unused.grad is None
        assert torch.equal(encoder.one.grad, encoder.other.grad)
        return encoder.one.grad, encoder.layer.bias.grad

    first, second = gradients(MMPareto(1.0), [0]), gradients(MMPareto(1.0), [1])
    both = gradients(MMPareto(1.0), [0, 1])  # into nothing, and on top
    torch.testing.assert_close(both, tuple(a + b for a, b in zip(first, second, strict=True)))
    for ours, plain in zip(first, gradients(UnimodalLosses(), [0]), strict=True):
        assert ours.norm() >= plain.norm() * (1 - 1e-5)


def test_tcmax_refuses_what_it_cannot_run():
    model = small_model()
    optimizer = wrap(model, policy=TCMax(max_rows=1000))
    ((inputs, target),) = batches(1)
    loss = F.cross_entropy(model(*inputs), target)
    with pytest.raises(ValueError, match=r"32\^2 = 1024 rows of this batch, more than max_rows=1000"):
        optimizer.balance(loss, target)
    soft = F.one_hot(target, 3).float()
    with pytest.raises(ValueError, match=r"class indices \[B\] as the target, got .* torch.float32"):
        optimizer.balance(loss, soft)
    for policy, message in [(UnimodalLosses(), "combiner"), (AGM(1.0), "objective")]:
        with pytest.raises(ValueError, match=message):
            TCMax() + policy
    for bad in ({"weight": 1.5}, {"max_rows": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            TCMax(**bad)


class Twice(Objective):
    def term(self, fusion, loss, target):
        return loss


def test_the_direction_turns_the_gradient_of_the_loss_and_the_objective():
    results = []
    for policy, factor in ((CGGM.paper(lam=0.2) + Twice(), 1), (CGGM.paper(lam=0.2), 2)):
        model = small_model()
        optimizer = wrap(model, policy=policy)
        for inputs, target in batches(2):
            optimizer.zero_grad()
            loss = factor * F.cross_entropy(model(*inputs), target)
            optimizer.balance(loss, target).backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)
