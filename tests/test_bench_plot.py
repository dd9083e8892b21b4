"""`python benchmarks/plot.py`: the comparisons in the JSON of `make bench`, and their picture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "plot.py"
sys.path.insert(0, str(PROGRAM.parent))

from plot import read_comparisons  # noqa: E402

RESULT = {
    "benchmarks": [
        {"name": "test_adamw[200-float32]", "extra_info": {"ratio": {"fused": 1.02, "loop": 2.5}}},
        {"name": "test_adamw[10-float32]", "extra_info": {"ratio": {"fused": 0.9}}},
        {"name": "test_whole_step", "extra_info": {"ratio": {"joint": 0.5}}},
        {"name": "test_without_alternatives", "extra_info": {}},
    ]
}


def test_comparisons_are_read_in_order(tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(RESULT))
    found = [(c.benchmark, c.case, dict(c.ratios)) for c in read_comparisons(tmp_path / "benchmark.json")]
    assert found == [
        ("adamw", "200-float32", {"fused": 1.02, "loop": 2.5}),
        ("adamw", "10-float32", {"fused": 0.9}),
        ("whole step", "-", {"joint": 0.5}),
    ]


def test_the_program_draws(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "benchmark.json").write_text(json.dumps(RESULT))
    command = [sys.executable, str(PROGRAM), str(tmp_path / "benchmark.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "benchmark.png" in result.stdout
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"benchmarks": []}'])
def test_what_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "benchmark.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"benchmark\.json"):
        read_comparisons(path)
