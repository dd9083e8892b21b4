"""`cggm bench --plot`: the comparisons in the JSON of `make bench`, and their picture."""

import json

import pytest

from cggm import cli

pytest.importorskip("tyro")

RESULT = {
    "benchmarks": [
        {"name": "test_adamw[200-float32]", "extra_info": {"ratio": {"fused": 1.02, "loop": 2.5}}},
        {"name": "test_adamw[10-float32]", "extra_info": {"ratio": {"fused": 0.9}}},
        {"name": "test_whole_step", "extra_info": {"ratio": {"joint": 0.5}}},
        {"name": "test_without_alternatives", "extra_info": {}},
    ]
}


def test_comparisons_are_read_in_order(tmp_path):
    from cggm.experiments.bench_plot import read_comparisons

    (tmp_path / "benchmark.json").write_text(json.dumps(RESULT))
    found = [(c.benchmark, c.case, dict(c.ratios)) for c in read_comparisons(tmp_path / "benchmark.json")]
    assert found == [
        ("adamw", "200-float32", {"fused": 1.02, "loop": 2.5}),
        ("adamw", "10-float32", {"fused": 0.9}),
        ("whole step", "-", {"joint": 0.5}),
    ]


def test_the_command_draws(tmp_path, capsys):
    (tmp_path / "benchmark.json").write_text(json.dumps(RESULT))
    arguments = ["--plot", str(tmp_path / "benchmark.json"), "--out", str(tmp_path / "picture.png")]
    assert cli.main(["bench", *arguments]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "picture.png" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"benchmarks": []}'])
def test_what_is_no_result_is_named(tmp_path, capsys, content):
    path = tmp_path / "benchmark.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["bench", "--plot", str(path)]) == 2
    assert "benchmark.json" in capsys.readouterr().err
