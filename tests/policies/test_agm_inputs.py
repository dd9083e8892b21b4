"""`AGM(zero="inputs")`: the encoders run again on zeros, as in the authors' script."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cggm.policies import AGM
from helpers import batches, small_model, wrap


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def fuse(model, features):
    return model.head(model.fusion(torch.cat([f.relu() for f in features], 1)).relu())


def test_it_runs_the_encoders_on_zeros_as_the_authors_script_does():
    """In evaluation mode, biases and batch normalization included."""
    results = []
    for ours in (True, False):
        model = small_model()
        for encoder in model.encoders.values():
            encoder[1] = nn.BatchNorm1d(16)
        optimizer = wrap(model, sgd(model), AGM(2.0, zero="inputs"))
        plain, means = sgd(model), [0.0, 0.0]
        for step, (inputs, target) in enumerate(batches(3)):
            optimizer.zero_grad()
            if ours:
                optimizer.balance(F.cross_entropy(model(*inputs), target), target).backward()
                optimizer.step()
                continue
            optimizer.active = False
            everyone = model(*inputs)
            kept = [model.encoders[m](x) for m, x in zip(model.modalities, inputs, strict=True)]
            model.eval()
            zeros = [
                model.encoders[m](torch.zeros_like(x)) for m, x in zip(model.modalities, inputs, strict=True)
            ]
            first, second = fuse(model, [kept[0], zeros[1]]), fuse(model, [zeros[0], kept[1]])
            model.train()
            responses = [0.5 * (everyone - second + first), 0.5 * (everyone - first + second)]
            rows = torch.arange(len(target))
            surprises = [-r.softmax(1)[rows, target].clamp_min(1e-8).log().mean().item() for r in responses]
            middle, usual = sum(surprises) / 2, sum(means) / 2
            for response, s, mean in zip(responses, surprises, means, strict=True):
                c = math.exp(2.0 * (math.exp(2 * (usual - mean)) - math.exp(2 * (middle - s))))
                response.register_hook(lambda gradient, c=c: gradient * c)
            means = [m * step / (step + 1) + s / (step + 1) for m, s in zip(means, surprises, strict=True)]
            F.cross_entropy(sum(responses), target).backward()
            plain.step()
        results.append(
            torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "unimodal" not in n])
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_it_refuses_an_encoder_of_token_numbers():
    model = small_model()
    model.encoders["image"] = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(0), nn.Unflatten(0, (-1, 4)))
    optimizer = wrap(model, policy=AGM(zero="inputs"))
    loss = model(torch.randn(5, 8), torch.randint(9, (5,))).mean()
    with pytest.raises(ValueError, match=r"encoder 'image': AGM\(zero='inputs'\).*take zero='features'"):
        optimizer.balance(loss, torch.zeros(5, dtype=torch.long))
    assert model.training
    assert not any(hook.passing for hook in optimizer._model.encoders.hooks)
