"""Intervals, p-values and the choice of learning rates: what may be claimed from few seeds and few rows."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score
from test_compare import build_balanced, make_run

from cggm.experiments.experiment import Split
from cggm.experiments.reports import comparison, report
from cggm.experiments.reports.intervals import Interval, bootstrap, holm, student_p
from cggm.experiments.training import loop, measuring
from cggm.experiments.training.methods import choose_methods
from cggm.experiments.training.results import Job
from cggm.experiments.training.tuning import Validation, best_step, next_step

RANDOM = np.random.default_rng(0)


def test_students_p_is_scipys():
    values = [0.01, 0.03, -0.02, 0.05]
    assert student_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert student_p([0.1]) is None
    assert (student_p([0.1, 0.1]), student_p([0.0, 0.0])) == (0.0, 1.0)


def test_the_bootstrap_sees_the_choice_of_rows():
    """Seeds that agree on every row have no spread; the rows have."""
    rows = np.array([1] * 6 + [-1] * 3 + [0] * 91)
    interval, p = bootstrap(np.tile(rows, (5, 1)))
    half = 1.96 * rows.std() / 10
    assert interval.mean == pytest.approx(0.03)
    assert interval.low == pytest.approx(0.03 - half, abs=0.012)
    assert interval.high == pytest.approx(0.03 + half, abs=0.012)
    assert 0.2 < p < 0.6
    assert student_p([0.03] * 5) == 0.0
    assert bootstrap(np.tile(rows, (5, 1))) == (interval, p)


def test_the_bootstrap_sees_the_spread_over_seeds():
    gains = RANDOM.standard_normal(12)
    interval, _ = bootstrap(np.tile(gains[:, None], (1, 40)))
    expected = Interval.of(list(gains))
    assert interval.mean == pytest.approx(expected.mean)
    assert interval.high - interval.low == pytest.approx(expected.high - expected.low, rel=0.25)


def test_holm_is_its_definition():
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.9, 0.02]) == pytest.approx([0.08, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_only_what_survives_the_correction_is_marked():
    gains = {"good": (0.10, 0.11, 0.12), "lucky": (0.01, 0.02, 0.09), "same": (-0.01, 0.0, 0.01)}
    runs = [make_run("joint", seed, 0.5) for seed in range(3)]
    runs += [make_run(m, seed, 0.5 + gain) for m, values in gains.items() for seed, gain in enumerate(values)]
    rows = report.summarize(runs, [])
    (table,) = comparison.tables(rows)
    cells = list(table.columns[3].cells)
    assert [cell.endswith("*") for cell in cells if cell] == [True, False, False]
    assert "correction for 3 comparisons" in table.caption
    assert [row.p is None for row in rows] == [True, False, False, False]


def test_fixed_test_rows_are_resampled():
    hits = {"joint": "0000011111", "default": "0001111111"}
    runs = [make_run(m, s, text.count("1") / 10, correct=text) for m, text in hits.items() for s in range(4)]
    _, default = report.summarize(runs, [])
    assert default.interval.mean == pytest.approx(0.2)
    assert default.interval.low == pytest.approx(0.0, abs=0.01)  # no row was drawn where they differ
    assert default.p > 0.1
    drawn = [dataclasses.replace(run, correct="") for run in runs]
    assert report.summarize(drawn, [])[1].interval == pytest.approx((0.2, 0.2, 0.2))


def test_runs_keep_the_rows_of_a_fixed_test_part_alone():
    def fixed():
        return dataclasses.replace(build_balanced(), fixed_test=True)

    job = Job(build=build_balanced, optimizer="sgd", methods=choose_methods(["joint"]), seed=0, epochs=1)
    (drawn,) = loop.run_job(dataclasses.replace(job, only_accuracy=True)).runs
    (kept,) = loop.run_job(dataclasses.replace(job, only_accuracy=True, build=fixed)).runs
    assert drawn.correct == ""
    assert len(kept.correct) == 20
    assert kept.correct.count("1") / 20 == kept.accuracy == drawn.accuracy


def test_f1_and_loss_are_those_of_sklearn_and_torch():
    logits, target = torch.randn(40, 4), torch.randint(3, (40,))
    found = measuring.evaluate(torch.nn.Identity(), Split((logits,), target))
    assert found.f1 == pytest.approx(f1_score(target, logits.argmax(1), average="macro", zero_division=0))
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item())
    assert found.accuracy == measuring.accuracy(torch.nn.Identity(), Split((logits,), target))


# tuning --------------------------------------------------------------------------------------------------------------


def test_a_lucky_rate_is_not_chosen():
    """60 validation rows: two rows more are luck, a loss five times as high is not."""
    steady = [make_run(seed=s, validation=0.90, validation_loss=0.3, validation_rows=60) for s in range(3)]
    lucky = [make_run(seed=s, validation=0.92, validation_loss=1.5, validation_rows=60) for s in range(3)]
    tried = {0: Validation.of(steady), 1: Validation.of(lucky)}
    assert best_step(tried) == 0
    many = {step: found._replace(error=0.001) for step, found in tried.items()}
    assert best_step(many) == 1


def test_the_standard_error_is_the_larger_of_seeds_and_rows():
    spread = [make_run(seed=s, validation=v, validation_rows=10_000) for s, v in enumerate((0.7, 0.8, 0.9))]
    assert Validation.of(spread).error == pytest.approx(0.1 / math.sqrt(3))
    agreeing = [make_run(seed=s, validation=0.8, validation_rows=100) for s in range(3)]
    assert Validation.of(agreeing).error == pytest.approx(0.04)


def test_a_rate_that_diverged_is_not_chosen():
    diverged = Validation.of([make_run(validation=0.9, validation_loss=math.nan)])
    assert diverged.loss == math.inf
    assert best_step({0: diverged, 1: Validation(0.9, 0.5, 0.01)}) == 1


def test_the_choice_gets_neighbors_too():
    tried = {-1: Validation(0.90, 0.1, 0.02), 0: Validation(0.91, 0.5, 0.02), 1: Validation(0.90, 0.9, 0.02)}
    assert best_step(tried) == -1
    assert next_step(tried) == -2


def test_auc_is_scikit_learns_and_the_calibration_error_its_definition():
    logits, target = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3
    found = measuring.evaluate(torch.nn.Identity(), Split((logits,), target))
    probabilities = logits.double().softmax(1).numpy()
    expected = roc_auc_score(target.numpy(), probabilities, multi_class="ovr", average="macro")
    assert found.auc == pytest.approx(expected)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target.numpy()
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gaps += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found.ece == pytest.approx(gaps)
    diverged = measuring.evaluate(torch.nn.Identity(), Split((logits * float("nan"),), target))
    assert (diverged.auc, diverged.ece) == (None, None)
