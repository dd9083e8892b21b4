"""The FSDP2 example, as its docstring says to run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_fsdp.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--bfloat16"]])
def test_torchrun_trains_a_transformer_of_two_encoders(options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, str(EXAMPLE), "--steps", "40", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = map(float, re.search(r"loss (\S+) -> (\S+),", done.stdout).groups())
    assert last < 0.8 * first
