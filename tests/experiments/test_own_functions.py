"""`cggm compare --experiment module:train` with a function `train(wrap, seed) -> metrics`."""

import json
import sys

import pytest
import torch
from test_compare import TwoEncoders, load
from torch.nn import functional as F

from cggm import CGGMOptimizerWrapper, cli

CALLS = []


def train(wrap, seed, steps=3):
    model, data = TwoEncoders(), load(seed)
    optimizer = wrap(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"left": "left", "right": "right"},
        head="head",
    )
    CALLS.append((type(optimizer).__name__, seed))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*data.train.inputs), data.train.target)
        optimizer.balance(loss, data.train.target).backward()
        optimizer.step()
    return {"loss": loss.detach(), "seed": seed}


def arguments(out, name="train", *more):
    names = [f"{__name__}:{name}", "--methods", "joint", "unimodal", "--seeds", "2"]
    return ["compare", "--experiment", *names, "--out", str(out), *more]


def test_a_function_is_called_once_per_method_and_seed_and_a_second_time_not_at_all(tmp_path, capsys):
    CALLS.clear()
    assert cli.main(arguments(tmp_path)) == 0
    names = ("SGD", CGGMOptimizerWrapper.__name__)
    assert [(name, seed) for seed in (0, 1) for name in names] == CALLS
    first = capsys.readouterr().out
    assert "loss" in first
    assert len((tmp_path / "functions.jsonl").read_text().splitlines()) == 4
    with (tmp_path / "functions.jsonl").open("a") as file:
        file.write('{"job": ["cut off')
    assert cli.main(arguments(tmp_path)) == 0
    assert len(CALLS) == 4
    joint = json.loads((tmp_path / "functions.jsonl").read_text().splitlines()[0])
    torch.manual_seed(0)
    assert joint["metrics"]["loss"] == pytest.approx(float(train(lambda o, *_, **__: plain(o), 0)["loss"]))


def plain(optimizer):
    optimizer.balance = lambda loss, target: loss
    return optimizer


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0.5, "must return metrics, a dict of names and numbers, got float"),
        ({}, "must return metrics"),
        ({"accuracy": "high"}, "metric 'accuracy' must be a number, got str"),
        ({"accuracy": float("nan")}, "metric 'accuracy' must be finite"),
        (ZeroDivisionError("oh"), "failed with joint, seed 0: ZeroDivisionError in test_own_functions.py"),
    ],
)
def test_what_a_function_does_wrong_gets_one_line(returned, message, tmp_path, capsys):
    def bad(wrap, seed):
        if isinstance(returned, Exception):
            raise returned
        return returned

    sys.modules[__name__].bad = bad
    assert cli.main(arguments(tmp_path, "bad")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_methods_that_a_function_must_do_itself_are_refused_before_it_runs(tmp_path, capsys):
    CALLS.clear()
    assert cli.main([*arguments(tmp_path)[:4], "ensemble", "--out", str(tmp_path)]) == 2
    assert "has to clip" in capsys.readouterr().err
    assert cli.main([*arguments(tmp_path), "--tune"]) == 2
    assert "choose rates and epochs themselves" in capsys.readouterr().err
    assert not CALLS


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path, capsys):
    path = tmp_path / "functions.jsonl"
    path.write_bytes(b"my notes\nand an unfinished line")
    assert cli.main(arguments(tmp_path)) == 2
    assert "holds something else than runs" in capsys.readouterr().err
    assert path.read_bytes() == b"my notes\nand an unfinished line"


def train_without_a_target(wrap, seed):
    model = TwoEncoders()
    optimizer = wrap(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        encoders={"left": "left", "right": "right"},
        scores="retrieval",
    )
    inputs = load(seed).train.inputs
    first, second = (encoder(x) for encoder, x in zip((model.left, model.right), inputs, strict=True))
    optimizer.balance(F.mse_loss(first, second)).backward()
    optimizer.step()
    return {"loss": 0.0}


def test_joint_training_takes_every_form_of_balance(tmp_path):
    words = arguments(tmp_path, "train_without_a_target")
    words[words.index("unimodal")] = "cggm"
    assert cli.main(words) == 0
