"""The user's own experiments: how they are found, and that every wrong part gets one clear line."""

import dataclasses
import os
import pickle
import sys

import pytest
import torch
from test_compare import build_balanced, load
from torch import nn

from cggm import cli
from cggm.experiments.compare import Comparison, run_compare
from cggm.experiments.datasets.checks import check_experiment
from cggm.experiments.datasets.registry import find_experiment
from cggm.experiments.experiment import Split, Splits

FILE = """
import torch
from helper_of_mine import FEATURES
from torch import nn
from cggm.experiments.experiment import Experiment, Split, Splits

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, FEATURES), nn.Linear(3, FEATURES), nn.Linear(2 * FEATURES, 2)
    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1).relu())

def load(seed):
    generator = torch.Generator().manual_seed(seed)
    def part(rows):
        x = torch.randn(rows, 3, generator=generator)
        return Split((x, x + 1), (x[:, 0] > 0).long())
    return Splits(part(30), part(10), part(10))

def make(name):
    return Experiment(name=name, encoders={"a": "a", "b": "b"}, head="head", load=lambda seed: load(seed), epochs=1,
                      model=lambda: Model(), classifier=lambda: nn.Linear(FEATURES, 2))

first = make("first")
second = lambda: make("second")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper_of_mine.py").write_text("FEATURES = 4\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mine", "helper_of_mine", "cggm_experiment_mine"):
        sys.modules.pop(name, None)


def test_lambdas_objects_files_and_modules_train_in_workers(mine, monkeypatch):
    monkeypatch.chdir(mine)
    names = (f"{mine / 'mine.py'}:first", "mine:second")
    asked = Comparison(
        experiment=names, methods=("joint",), optimizers=("sgd",), seeds=1, processes=1, out=mine / "out"
    )
    assert run_compare(asked)
    written = (mine / "out" / "compare.json").read_text()
    assert '"first"' in written
    assert '"second"' in written


def test_nothing_in_the_current_folder_hides_an_installed_module(mine, monkeypatch):
    monkeypatch.chdir(mine)
    (mine / "mine.py").write_text(f"import sys\nSEEN = list(sys.path)\n{FILE}")
    before = list(sys.path)
    build = find_experiment("mine:second")
    assert [*before, os.getcwd()] == sys.modules["mine"].SEEN
    assert sys.path == before
    assert pickle.loads(pickle.dumps(build))().name == "second"


def test_two_experiments_of_one_name_are_refused(mine, capsys):
    name = f"{mine / 'mine.py'}:first"
    (mine / "copy.py").write_text(FILE)
    assert cli.main(["compare", "--experiment", name, f"{mine / 'copy.py'}:first"]) == 2
    assert "different names, got ['first', 'first']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "mine.py:first", "FileNotFoundError"),
        (
            "import no_such_module_at_all",
            "mine.py:first",
            "ModuleNotFoundError in mine.py, line 1: No module",
        ),
        (
            "def first(): return 1 / 0",
            "mine.py:first",
            "ZeroDivisionError in mine.py, line 1: division by zero",
        ),
        ("first = 3", "mine.py:first", "got int"),
        ("first = 3", "mine.py:second", "no attribute 'second'"),
        ("def first(x): pass", "mine.py:first", "missing 1 required positional argument"),
        ("a = (", "mine.py:first", "SyntaxError"),
    ],
)
def test_a_file_that_holds_none_gets_one_line(code, name, message, mine, capsys):
    (mine / "mine.py").unlink()
    if code is not None:
        (mine / "mine.py").write_text(code)
    assert cli.main(["data", str(mine / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_right_experiment_passes():
    data = check_experiment(build_balanced(), seed=0, optimizers=("sgd", "adam"))
    assert isinstance(data, Splits)


def changed(part="train", **fields):
    """A `load` of which one part has other fields."""

    def loaded(seed):
        data = load(seed)
        split = getattr(data, part)
        new = {name: change(getattr(split, name)) for name, change in fields.items()}
        return data._replace(**{part: split._replace(**new)})

    return loaded


def with_nan(inputs):
    return (inputs[0].index_fill(0, torch.tensor([3]), float("nan")), inputs[1])


def missing_file(seed):
    return open("no_such_file.npz")


class Swapped(nn.Module):
    """Equal widths, so that no shape shows that the encoders are named in the wrong order."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.left(left), self.right(right * 2)], 1))


def equal_widths(seed):
    return Splits(*(Split((part.inputs[0], part.inputs[0] + 1), part.target) for part in load(seed)))


SWAPPED = {"encoders": {"right": "right", "left": "left"}, "model": Swapped, "load": equal_widths}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": missing_file}, "load(0) failed: FileNotFoundError in test_own_experiments.py, line"),
        ({"load": lambda seed: tuple(load(seed))}, "load must return Splits(train, validation, test), got tuple"),
        ({"load": lambda seed: load(seed)._replace(test=(1, 2))}, "test part: must be Split(inputs, target)"),
        ({"load": changed(inputs=lambda x: (x[0].double(), x[1]))}, "train part, input 'left': must not be float64"),
        ({"load": changed(inputs=with_nan)}, "input 'left': must be finite, got 3 NaN"),
        ({"load": changed(inputs=lambda x: x[:1])}, "one input for each of ['left', 'right'], got 1"),
        ({"load": changed(inputs=lambda x: (x[0][:9], x[1]))}, "a tensor of 40 rows"),
        ({"load": changed(target=lambda y: y + 1)}, "classes from 0 to 1, one per logit of the model, got 2"),
        ({"load": changed(target=lambda y: y - 1)}, "classes from 0 on, got -1"),
        ({"load": changed(target=lambda y: y.int())}, "int64 tensor [N] of classes, got torch.int32 [40]"),
        ({"load": changed("validation", target=lambda y: y[:0])}, "validation part: is empty"),
        ({"encoders": {"left": "left", "right": "rigth"}}, "no module 'rigth' (did you mean 'right'?)"),
        ({"encoders": {"left": "left"}}, "at least two modalities"),
        (SWAPPED, "in the order of the model's arguments; 'right' is number 1 but reads argument 2"),
        ({"head": "heads"}, "head: the model has no module 'heads' (did you mean 'head'?)"),
        ({"model": lambda: nn.Bilinear()}, "model() failed: TypeError"),
        ({"model": nn.Identity}, "no module 'left'"),
        ({"classifier": lambda: nn.Linear(5, 2)}, "classifier: fails on the features [2, 4] of 'left'"),
        ({"classifier": lambda: nn.Linear(4, 3)}, "classifier: must return [2, 2] for 'left', got [2, 3]"),
        ({"learning_rates": {"sgd": 0.1}}, "learning_rates needs a positive rate for 'adam', it has {'sgd': 0.1}"),
    ],
)  # fmt: skip
def test_each_wrong_part_gets_one_clear_line(changes, message):
    experiment = dataclasses.replace(build_balanced(), **changes)
    with pytest.raises(ValueError, match=r"^experiment 'toy': ") as caught:
        check_experiment(experiment, seed=0, optimizers=("sgd", "adam"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_comparison_checks_before_it_trains(tmp_path, capsys):
    bad = dataclasses.replace(build_balanced(), head="no_head")
    sys.modules[__name__].bad = bad
    assert cli.main(["compare", "--experiment", f"{__name__}:bad", "--out", str(tmp_path / "out")]) == 2
    assert "head: the model has no module 'no_head'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--dataset", "--experiment"])
def test_an_option_without_a_name_is_refused(option, tmp_path, capsys):
    assert cli.main(["compare", option, "--out", str(tmp_path / "out")]) == 2
    assert f"{option[2:]} must name at least one" in capsys.readouterr().err
