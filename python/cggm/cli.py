"""The command line: `cggm demo`, `diagnose`, `compare`, `data`, `experiment` and `info`."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence

#: What the extra `demo` installs, by import name.
EXTRA = ("matplotlib", "numpy", "rich", "scipy", "sklearn", "tyro")

#: Exit status after Ctrl-C or SIGTERM.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: the words after `cggm`; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["info"]:  # the one command that works without the extra
        return info()
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        print(f'cggm needs {", ".join(missing)}: pip install "cggm[demo]"', file=sys.stderr)
        return 1
    import tyro

    from cggm.experiments.compare import Comparison, run_compare
    from cggm.experiments.data_check import DataCheck, run_data_check
    from cggm.experiments.demo import Demo, run_demo
    from cggm.experiments.diagnosis import Diagnosis, run_diagnosis
    from cggm.experiments.papers.command import PaperExperiment, run_experiment
    from cggm.experiments.training.runner import handle_signals

    commands = {
        "demo": Demo,
        "diagnose": Diagnosis,
        "compare": Comparison,
        "data": DataCheck,
        "experiment": PaperExperiment,
        "info": info,
    }
    runs = {
        Demo: run_demo,
        Diagnosis: run_diagnosis,
        Comparison: run_compare,
        DataCheck: run_data_check,
        PaperExperiment: run_experiment,
    }
    try:
        with handle_signals((signal.SIGTERM,), signal.default_int_handler):  # as Ctrl-C
            chosen = tyro.extras.subcommand_cli_from_dict(commands, prog="cggm", args=arguments)
            if isinstance(chosen, int):  # info, which has run already
                return chosen
            return INTERRUPTED if runs[type(chosen)](chosen) is False else 0
    except (ValueError, OSError) as error:
        print(f"cggm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def info() -> int:
    """Show versions, devices, and which implementation of the operators runs and why."""
    from importlib import metadata

    import torch

    import cggm
    import cggm_ops

    triton = metadata.version("triton") if importlib.util.find_spec("triton") else "not installed"
    rows = {
        "cggm": cggm.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": sys.version.split()[0],
    }
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        name = "" if device == "cpu" else f" on {torch.cuda.get_device_name(device)}"
        rows[device] = f"{cggm_ops.backend(device)} operators{name}"
    rows["threads"] = torch.get_num_threads()
    build = cggm_ops.build_info()
    if build is None:
        rows["compiled extension"] = f"none: {cggm_ops.missing_reason()}"
    else:
        rows |= {f"built with {key.replace('_', ' ')}": value or "none" for key, value in build.items()}
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:{width}}  {value}")
    return 0
