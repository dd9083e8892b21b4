"""The command line: `cggm demo`, `cggm compare`, `cggm experiment` and `cggm info`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

#: What the extra `demo` installs, by import name.
EXTRA = ("matplotlib", "numpy", "rich", "sklearn", "tyro")

#: The exit status of what Ctrl-C has ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the words after the command's name, by default those that the program was started with.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        print(f'cggm needs {", ".join(missing)}: pip install "cggm[demo]"', file=sys.stderr)
        return 1
    import tyro

    from cggm.experiments.compare import Comparison, run_compare

    commands = {
        "demo": demo,
        "compare": Comparison,
        "experiment": experiment,
        "info": info,
    }
    try:
        chosen = tyro.extras.subcommand_cli_from_dict(commands, prog="cggm", args=arguments)
        if isinstance(chosen, Comparison):
            return 0 if run_compare(chosen) else INTERRUPTED
        return chosen
    except ValueError as error:  # an argument that the library refuses, in the library's words
        print(f"cggm: {error}", file=sys.stderr)
        return 2


def demo(
    *,
    seeds: int = 5,
    first_seed: int = 0,
    methods: tuple[str, ...] = ("joint", "unimodal", "cggm", "cggm-paper", "default"),
    optimizers: tuple[str, ...] = ("sgd", "adam"),
    epochs: int = 20,
    json: Path | None = None,
    out: Path = Path(),
) -> int:
    """Train an audio-visual model jointly and balanced, on real data, and compare.

    Prints a table, and writes every run to demo.json and a picture of the training to demo.png.

    Args:
        seeds: How many seeds.
        first_seed: The first of them; the others follow.
        methods: What to compare: joint, unimodal, cggm, cggm-paper, cggm-released, ogm-ge, agm, mmpareto,
            feature-pareto, norm-equalization, dgl, dropout, default.
        optimizers: With which optimizers: sgd, adam.
        epochs: Epochs of training.
        json: The file for the runs, demo.json in the output folder if not given.
        out: The folder for demo.json and demo.png.
    """
    from cggm.experiments.demo import run_demo

    complete = run_demo(
        methods=methods,
        optimizers=optimizers,
        seeds=range(first_seed, first_seed + seeds),
        json_path=json or out / "demo.json",
        plot_path=out / "demo.png",
        epochs=epochs,
    )
    return 0 if complete else INTERRUPTED


def experiment(
    name: Literal["food101", "mosi", "iemocap", "brats", "cremad"],
    /,
    *,
    data: Path,
    policy: str = "cggm",
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    fold: int = 1,
    models: tuple[str, str] = ("google/vit-base-patch16-224-in21k", "bert-base-uncased"),
    out: Path = Path(),
) -> int:
    """Train one of the papers' experiments on data that you have, with the papers' hyper-parameters.

    The epoch that does best on the validation part is the one that is tested. Writes the result to
    <name>-<policy>-<seed>.json. Needs the extra cggm[papers].

    Args:
        name: Which experiment.
        data: Where the data are; the module of the experiment describes the format.
        policy: The name of a method, as in cggm compare; cggm-paper and cggm-released take the paper's rho and lambda.
        seed: Of weights and batches.
        epochs: Instead of the paper's.
        batch_size: Instead of the paper's.
        fold: Of IEMOCAP's cross-validation.
        models: Food 101's frozen models, folders or names: ViT, then BERT.
        out: The folder for the result.
    """
    from cggm.experiments.papers.command import PaperExperiment, run_experiment

    told = {"policy": policy, "seed": seed, "epochs": epochs, "batch_size": batch_size}
    run_experiment(PaperExperiment(name=name, data=data, fold=fold, models=models, out=out, **told))
    return 0


def info() -> int:
    """Show versions, the backend of the operators and why it is that one, and the devices."""
    from importlib import metadata

    import torch
    from rich.console import Console
    from rich.table import Table

    import cggm
    import cggm_ops

    table = Table(show_header=False)
    table.add_row("cggm", cggm.__version__)
    table.add_row("torch", torch.__version__)
    table.add_row(
        "triton", metadata.version("triton") if importlib.util.find_spec("triton") else "not installed"
    )
    table.add_row("python", sys.version.split()[0])
    table.add_section()
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        name = "" if device == "cpu" else f" on {torch.cuda.get_device_name(device)}"
        table.add_row(device, f"{cggm_ops.backend(device)} operators{name}")
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_section()
    build = cggm_ops.build_info()
    if build is None:
        table.add_row("compiled extension", f"none: {cggm_ops.missing_reason()}")
    else:
        for key, value in build.items():
            table.add_row(f"built with {key}".replace("_", " "), "none" if value is None else str(value))
    Console().print(table)
    return 0
