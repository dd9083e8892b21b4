"""Every function that `make gpu` measures with, run on the CPU on small inputs, and its CUDA calls on stand-ins."""

import contextlib
import ctypes
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from gpu import capture, models, operators, steps
from gpu.budget import Entries, Skipped
from gpu.measure import SECTIONS, quick

import cggm_ops

BACKEND = cggm_ops.backend("cpu")
SETTINGS = operators.Settings("cpu", (BACKEND,), quick, small=True)


@pytest.mark.parametrize("name", operators.OPERATORS)
@pytest.mark.parametrize("dtype", operators.DTYPES, ids=str)
def test_every_operator_is_measured_against_something_that_runs(name, dtype):
    size = operators.Size(20_000, tensors=10, modalities=3, dtype=dtype, device="cpu")
    call = operators.OPERATORS[name].make(size.case(name))
    measured = {other for other in call.others if "loop" not in other}
    assert measured
    assert call.memory.read >= 10_000  # bytes: about what the size says
    found = operators.measure_operator(name, BACKEND, size, quick, copy_gb_per_s=2.0)
    assert set(found["ms"]) == {"ours", *measured}
    assert set(found["ratio"]) == measured
    assert found["percent_of_copy"] == pytest.approx(50 * found["gb_per_s"])


def test_another_backend_than_the_one_named_is_never_timed(monkeypatch):
    monkeypatch.setattr(cggm_ops, "backend", lambda device: "triton")
    case = operators.Size(1000, tensors=2, device="cpu")
    with pytest.raises(RuntimeError, match="triton would be timed"):
        operators.measure_operator("scale_", BACKEND, case, quick, 1.0)


def test_all_operators_are_swept_over_sizes_counts_and_modalities():
    swept = list(operators.swept_sizes("cuda", small=False))
    assert {c.nbytes for c, _ in swept} >= {1_000_000, 1_000_000_000}
    assert {c.tensors for c, _ in swept} >= {10, 100, 1000}
    assert {c.modalities for c, _ in swept} >= {2, 4, 8, 16}
    assert {c.dtype for c, _ in swept} == {torch.float32, torch.bfloat16}
    assert all(set(names) <= set(operators.OPERATORS) for _, names in swept)


@pytest.mark.parametrize("section", ["operators", "steps", "host time", "capture"])
def test_a_section_runs_on_the_cpu(section):
    entries = Entries(120)
    SECTIONS[section](entries, SETTINGS)
    assert not entries.report["failed"]
    assert bool(entries.report["skipped"]) == (section == "capture")  # CUDA graphs need a GPU
    assert bool(entries.report["figures"]) == (section != "capture")
    json.dumps(entries.report)


@pytest.mark.slow
def test_the_sweep_runs_on_the_cpu():
    entries = Entries(300)
    SECTIONS["sweep"](entries, SETTINGS)
    assert not entries.report["failed"]
    assert len(entries.report["figures"]) > 80


@pytest.mark.parametrize("name", capture.OPERATORS)
@pytest.mark.parametrize("tensors", [3, 50])
def test_inputs_of_the_capture_give_the_same_from_the_same_start(name, tensors):
    with torch.no_grad():
        one, other = (capture.make(name, tensors, "cpu") for _ in range(2))
        capture.compare_results(one.ours(), other.ours(), one, other)
        before = capture.values(one)
        one.ours()
        assert bool(before) == bool(one.changed)
        if before:
            with pytest.raises(RuntimeError, match="differs"):
                capture.compare_results(None, None, one, other)


def test_the_large_model_has_about_a_hundred_million_parameters():
    with torch.device("meta"):
        model = models.TwoEncoders(models.FULL)
    assert 95e6 < sum(p.numel() for p in model.parameters()) < 105e6
    assert 200 < len(list(model.parameters())) < 300


def test_classifiers_by_hand_are_as_large_as_the_wrappers():
    by_hand, wrapped = (
        models.Training(way, "SGD", models.SMALL, "cpu")
        for way in (models.BY_HAND, next(iter(models.WRAPPED)))
    )
    own = [p.shape for c in by_hand.classifiers for p in c.parameters()]
    assert own == [p.shape for p in wrapped.model.unimodal_classifiers.parameters()]
    stepped = {p for group in by_hand.optimizer.param_groups for p in group["params"]}
    assert stepped >= {p for c in by_hand.classifiers for p in c.parameters()}


@pytest.mark.parametrize("optimizer", models.OPTIMIZERS)
@pytest.mark.parametrize("way", models.WAYS)
def test_every_way_of_training_learns(way, optimizer):
    training = models.Training(way, optimizer, models.SMALL, "cpu")
    before = training.forward().item()
    for _ in range(20):
        training()
    after = training.forward().item()
    assert steps.compare_falls(before, after, after)["eager"] < before
    with pytest.raises(RuntimeError, match="as many replayed ones"):
        steps.compare_falls(before, after, before)


class Graph:
    """A CUDA graph that was captured by running the step, and that replays nothing."""

    def __init__(self, keep_graph=False):
        self.keep_graph = keep_graph

    def replay(self):
        pass

    def raw_cuda_graph(self):
        assert self.keep_graph
        return 1234


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def stand_ins(monkeypatch):
    """The calls of torch.cuda that the measurements make, on a machine without a GPU; the modes that were set."""
    modes = []
    for name, stand_in in {
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(graph),
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(stream),
        "current_stream": Stream,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (10_000, 20_000),
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return modes


def test_a_case_without_room_is_skipped(stand_ins):
    operators.check_memory(operators.Size(3000, device="cuda"))
    with pytest.raises(Skipped, match=r"needs 0\.0 GB"):
        operators.check_memory(operators.Size(4000, device="cuda"))


@pytest.mark.parametrize("way", models.WRAPPED)
@pytest.mark.parametrize("optimizer", models.OPTIMIZERS)
def test_the_ban_on_waiting_is_lifted_again(stand_ins, way, optimizer):
    assert "no synchronization" in steps.never_waits(way, optimizer, "cpu")
    assert stand_ins == ["error", "default"]


@pytest.mark.parametrize("way", models.WAYS)
def test_a_graph_that_does_not_replay_is_found_out(stand_ins, way):
    with pytest.raises(RuntimeError, match="as many replayed ones"):
        steps.replays(way, "SGD", "cpu")


@pytest.mark.parametrize("name", capture.OPERATORS)
def test_an_operator_whose_graph_does_not_replay_is_found_out(stand_ins, monkeypatch, name):
    monkeypatch.setattr(capture, "count_nodes", lambda graph: {"kernels": graph})
    if name in ("batched_cosine", "segment_gram"):  # these give the same without being replayed
        assert capture.replay_one(name, BACKEND, 5, "cpu") == {"kernels": 1234}
    else:
        with pytest.raises(RuntimeError, match="differs from the calls"):
            capture.replay_one(name, BACKEND, 5, "cpu")
    assert stand_ins == ["error", "default"]


def test_captured_steps_are_timed(stand_ins, monkeypatch):
    found = steps.time_steps("SGD", models.SMALL, SETTINGS, captured=True)
    assert set(found["ms"]) == set(models.WAYS)


def test_nodes_of_a_graph_are_counted_by_kind(monkeypatch):
    """The driver's two calls: how many nodes there are and which; of which kind each is."""
    kinds = {11: 0, 12: 2, 13: 0}

    def nodes(graph, found, count):
        assert graph.value == 1234
        if found is not None:
            found[:] = list(kinds)
        ctypes.cast(count, ctypes.POINTER(ctypes.c_size_t))[0] = len(kinds)
        return 0

    def kind(node, found):
        ctypes.cast(found, ctypes.POINTER(ctypes.c_int))[0] = kinds[node.value]
        return 0

    driver = SimpleNamespace(cuGraphGetNodes=nodes, cuGraphNodeGetType=kind)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert capture.count_nodes(1234) == {"kernels": 2, "other nodes": 1}
    driver.cuGraphNodeGetType = lambda node, found: 700
    with pytest.raises(RuntimeError, match="error 700"):
        capture.count_nodes(1234)
