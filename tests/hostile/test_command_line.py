"""Options that cannot be end a command with exit status 2 before it trains, and with one line that names the option."""

import re

import pytest

from cggm import cli
from cggm.experiments.training import runner

pytest.importorskip("tyro")

HUGE = str(10**30)
#: Command line, words of the line.
REFUSED = {
    **{
        f"{command} --seeds {count}": ([command, "--seeds", count], f"seeds must be from 1 to 100000, got {count}")
        for command in ("demo", "compare")
        for count in ("0", "-1", "100001", "10000000000", HUGE)
    },
    **{
        f"{command} --first-seed {seed}": ([command, "--first-seed", seed], f"first_seed.* must be .*, got {seed[:9]}")
        for command in ("demo", "compare")
        for seed in ("-1", "-5", str(2**63 - 1), HUGE)
    },
    **{
        f"{command} --seed {seed}": ([command, *given, "--seed", seed], f"^cggm: seed must be .*, got {seed}")
        for command, given in {
            "data": ["avdigits"],
            "diagnose": [],
            "experiment": ["mosi", "--data", "nowhere"],
        }.items()
        for seed in ("-1", str(2**63), HUGE)
    },
    **{
        f"{command} --epochs {epochs}": ([command, *given, "--epochs", epochs], f"epochs must be .*, got {epochs}")
        for command, given in {
            "demo": [],
            "compare": [],
            "diagnose": [],
            "experiment": ["mosi", "--data", "nowhere"],
        }.items()
        for epochs in ("0", "-3")
    },
    **{
        f"{command} --out {out}": ([command, *given, "--out", out], f"out: {out} cannot be")
        for command, given in {"demo": [], "compare": [], "diagnose": []}.items()
        for out in ("/dev/null/x", "/dev/null", "/proc/x")
    },
    **{
        f"{command} {option} without a name": ([command, option], f"{option[2:]} must")
        for command in ("demo", "compare")
        for option in ("--methods", "--optimizers")
    },
    **{
        f"{command} --methods {name!r}": ([command, "--methods", name], "method")
        for command in ("demo", "compare")
        for name in ("cgm", "", "Joint", "joint,cggm")
    },
    **{
        f"{command} --optimizers {name!r}": ([command, "--optimizers", name], "optimizers must be some of")
        for command in ("demo", "compare")
        for name in ("lion", "", "SGD", "sgd,adam")
    },
    **{
        f"diagnose --optimizer {name!r}": (["diagnose", "--optimizer", name], "optimizer must be one of")
        for name in ("lion", "", "SGD")
    },
    **{
        f"{command} data set {name!r}": ([*command.split(), name], "unknown data set")
        for command in ("data", "compare --dataset", "diagnose --dataset")
        for name in ("avdigit", "", "AVDIGITS", "../avdigits")
    },
    **{
        f"{command} {name!r}": ([*command.split(), name], f"experiment {name!r}")
        for command in ("data", "compare --experiment", "diagnose --experiment")
        for name in (":", "no_such_module:x", "os:", ":path", "os:no_such_name", "os:path", "nowhere.py:x", "os:getcwd")
    },
    **{
        f"{command} with a folder that is not read": ([*command.split(), "--data", "nowhere"], "data is read only by")
        for command in ("data avdigits", "diagnose --dataset uci", "compare --dataset uci", "diagnose", "compare")
    },
    **{
        f"{command} without its folder": (command.split(), "pass the folder of its files as --data PATH")
        for command in ("data cub", "diagnose --dataset wiki", "compare --dataset scene15 uci", "data utd-mhad")
    },
    **{
        f"{command} in a folder that is not there": ([*command.split(), "--data", "nowhere"], "data: nowhere has no")
        for command in ("data cub", "diagnose --dataset wiki", "compare --dataset scene15", "data utd-mhad")
    },
    **{
        f"experiment {name} without data": (["experiment", name, "--data", "nowhere"], "data: no .* at nowhere")
        for name in ("mosi", "iemocap", "food101", "brats", "cremad")
    },
    **{
        f"experiment --policy {name!r}": (["experiment", "mosi", "--data", "x", "--policy", name], "polic|method")
        for name in ("cgm", "", "ensemble", "CGGM")
    },
    **{
        f"experiment --batch-size {size}": (
            ["experiment", "mosi", "--data", "x", "--batch-size", size],
            f"batch_size must be at least 1, got {size}",
        )
        for size in ("0", "-1")
    },
    "compare --processes 0": (["compare", "--processes", "0"], "processes must be at least 1, got 0"),
    "compare --processes -1": (["compare", "--processes", "-1"], "processes must be at least 1, got -1"),
    "a data set and an experiment": (
        ["diagnose", "--dataset", "uci", "--experiment", "a:b"],
        "dataset and experiment",
    ),
    "one name twice": (
        ["compare", "--experiment", "cggm.experiments.datasets.uci:build", "--dataset", "uci"],
        "experiments must have different names",
    ),
    "a file that is a folder": (["demo", "--json", "."], r"out: \. cannot be written: it is a folder"),
}  # fmt: skip
#: What the parser of the command line refuses itself, with a box that names the option.
PARSED = {
    "no command": [],
    "a command that is none": ["balance"],
    "an option that is none": ["demo", "--seed-count", "3"],
    "info with an option": ["info", "x"],
    "data without a name": ["data"],
    "an experiment that is none": ["experiment", "imagenet", "--data", "x"],
    "an experiment without data": ["experiment", "mosi"],
    "a flag with a value": ["compare", "--tune", "no"],
    **{
        f"{' '.join(command)} {value!r}": [*command, value]
        for command in (["demo", "--seeds"], ["compare", "--epochs"], ["data", "uci", "--seed"])
        for value in ("x", "1.5", "1e99", "nan", "", "True")
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, and no training in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda **_: pytest.fail("it trains"))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_that_cannot_be_gets_one_line(case, capsys):
    arguments, words = REFUSED[case]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cggm: ")
    assert shown.err.count("\n") == 1
    assert shown.err[:-1].isprintable()
    assert len(shown.err) < 700
    assert re.search(words, shown.err), shown.err


@pytest.mark.parametrize("case", PARSED)
def test_what_the_parser_refuses(case, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(PARSED[case])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) < 25
