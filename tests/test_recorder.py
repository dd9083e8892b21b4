import csv

import pytest
import torch
from torch import nn

from cggm import CGGM, CGGMOptimizerWrapper
from cggm.recorder import Recorder


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.left(left), self.right(right)], 1).relu())


@pytest.fixture
def training():
    """An optimizer, and a function that takes one step with it."""
    torch.manual_seed(0)
    model = TwoLayers()
    encoders = {"left": "left", "right": "right"}
    optimizer = CGGMOptimizerWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), model, encoders=encoders, head="head", policy=CGGM()
    )

    def step():
        target = torch.randint(2, (8,))
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3), torch.randn(8, 5)), target)
        optimizer.zero_grad()
        optimizer.balance(loss, target).backward()
        optimizer.step()

    return optimizer, step


def test_history_is_what_the_statistics_were_after_each_step(training):
    optimizer, step = training
    recorder = Recorder(optimizer)
    seen = []
    for _ in range(4):
        step()
        recorder.record()
        seen.append({name: optimizer.statistics[name].tolist() for name in optimizer.statistics})
    history = recorder.history()
    assert len(recorder) == 4
    assert set(history) >= {"scores", "coefficients", "cosines", "grad_norms"}
    for name, values in history.items():
        torch.testing.assert_close(values, torch.tensor([s[name] for s in seen], dtype=torch.float32))
    assert len({tuple(s["scores"]) for s in seen}) == 4, (
        "the steps must differ for this test to tell anything"
    )


def test_recording_copies(training):
    optimizer, step = training
    recorder = Recorder(optimizer)
    step()
    recorder.record()
    before = recorder.history()["coefficients"].clone()
    optimizer.statistics["coefficients"].fill_(-7.0)
    torch.testing.assert_close(recorder.history()["coefficients"], before)


def test_an_empty_record_is_empty_and_cannot_be_drawn(training, tmp_path):
    recorder = Recorder(training[0])
    assert recorder.history() == {}
    with pytest.raises(RuntimeError, match=r"record\(\)"):
        recorder.plot(tmp_path / "nothing.png")
    assert not list(tmp_path.iterdir())


def test_recording_before_a_step_is_refused(training):
    recorder = Recorder(training[0])
    with pytest.raises(RuntimeError, match="balanced step"):
        recorder.record()
    assert len(recorder) == 0


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_writes_a_picture(training, tmp_path, ending):
    pytest.importorskip("matplotlib")
    optimizer, step = training
    recorder = Recorder(optimizer)
    for _ in range(3):
        step()
        recorder.record()
    path = tmp_path / f"history.{ending}"
    recorder.plot(path)
    assert path.stat().st_size > 2000


def test_a_run_goes_into_a_csv_file_and_to_tensorboard(training, tmp_path):
    optimizer, step = training
    recorder = Recorder(optimizer)
    with pytest.raises(RuntimeError, match=r"record\(\)"):
        recorder.to_csv(tmp_path / "none.csv")
    for _ in range(2):
        step()
        recorder.record()
    recorder.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    history = recorder.history()
    assert float(rows[1]["scores/right"]) == pytest.approx(history["scores"][1, 1].item())
    assert float(rows[0]["loss"]) == pytest.approx(history["loss"][0].item())

    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, *entry):
            self.seen.append(entry)

    writer = Writer()
    recorder.to_tensorboard(writer)
    assert len(writer.seen) == 2 * (len(rows[0]) - 1)
    assert ("scores/right", pytest.approx(history["scores"][1, 1].item()), 2) in writer.seen


def test_a_run_becomes_a_data_frame(training):
    pytest.importorskip("pandas")
    optimizer, step = training
    recorder = Recorder(optimizer)
    step()
    recorder.record()
    frame = recorder.to_dataframe()
    assert frame.loc[1, "coefficients/left"] == pytest.approx(recorder.history()["coefficients"][0, 0].item())


def test_tensorboard_reads_what_was_written(training, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    optimizer, step = training
    recorder = Recorder(optimizer)
    step()
    recorder.record()
    with SummaryWriter(tmp_path) as writer:
        recorder.to_tensorboard(writer)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Scalars("loss")[0].value == pytest.approx(recorder.history()["loss"][0].item())


def test_a_statistic_that_was_not_recorded_is_not_drawn(training, tmp_path):
    optimizer, step = training
    recorder = Recorder(optimizer)
    step()
    recorder.record()
    with pytest.raises(ValueError, match="nothing_such"):
        recorder.plot(tmp_path / "run.png", ["nothing_such"])
