"""Former names work for one version and warn with the new name."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from cggm import CGGM, CGGMOptimizerWrapper, Policy
from cggm.policies import Coefficients
from helpers import small_model, wrap


def construct(model, **options):
    names = {m: f"encoders.{m}" for m in model.modalities}
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return CGGMOptimizerWrapper(base, model, encoders=names, head="head", **options)


def test_classifiers_belong_to_their_encoders():
    model, audio = small_model(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(DeprecationWarning, match=r"encoders=\{name: Encoder\(\.\.\., classifier=\.\.\.\)\}"):
        construct(model, classifiers={"audio": audio})
    assert model.unimodal_classifiers.audio is audio
    with (
        pytest.warns(DeprecationWarning, match="classifiers"),
        pytest.raises(ValueError, match=r"names \['video'\], but the modalities"),
    ):
        construct(small_model(), classifiers={"video": audio})
    model = small_model()
    with pytest.warns(DeprecationWarning, match="classifiers"):
        construct(model, classifiers="attention")
    assert all(c.attention is not None for c in model.unimodal_classifiers.children())


def test_the_rate_of_the_classifiers_belongs_to_them():
    model = small_model()
    with pytest.warns(DeprecationWarning, match=r"scores=ClassifierScores\(lr=\.\.\.\)"):
        optimizer = construct(model, classifier_lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    with (
        pytest.warns(DeprecationWarning, match="classifier_lr"),
        pytest.raises(ValueError, match="pass scores alone"),
    ):
        construct(small_model(), classifier_lr=0.5, scores="masked")


def test_flatten_is_a_method():
    with pytest.warns(DeprecationWarning, match=r"optimizer\.flatten_gradients\(\)"):
        assert construct(small_model(), flatten=True).gradient_buffers


def test_renamed_arguments_and_properties():
    with pytest.warns(DeprecationWarning, match="score_kind="):
        assert CGGM(score="metric") == CGGM(score_kind="metric")
    with pytest.warns(DeprecationWarning, match=r"optimizer\.uses_fused_step"):
        assert wrap(small_model()).folded is False


def test_a_policy_of_ones_own_says_which_role_to_subclass():
    with pytest.raises(
        TypeError, match=r"subclass cggm\.policies\.Coefficients \(balance\), Combiner \(combine\)"
    ):
        type("Mine", (Policy,), {})
    assert type("Mine", (Coefficients,), {})


def test_importing_does_not_import_the_compiler():
    code = "import torch, sys; import cggm; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
