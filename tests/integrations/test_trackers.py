"""W&B, offline, and MLflow, in a folder: through Accelerate, Lightning and the Trainer, with the real packages."""

import pytest
import torch
from loops import lightning_module, unlabelled_clip
from torch.utils.data import DataLoader

from cggm import CGGM, CGGMOptimizerWrapper
from helpers import small_model, train, wrap


@pytest.fixture(params=["wandb", "mlflow"])
def tracker(request, tmp_path, monkeypatch):
    """Its name, and a function that returns what the last run has of a number."""
    package = pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)
    if request.param == "wandb":
        for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        yield "wandb", lambda name: package.run.summary[name]
        package.finish()
        return
    store = (tmp_path / "runs").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
    package.set_tracking_uri(store)

    def last(name):
        client = package.MlflowClient(store)
        experiments = [each.experiment_id for each in client.search_experiments()]
        (run,) = client.search_runs(experiments)
        return run.data.metrics[name]

    yield "mlflow", last
    package.end_run()


def test_accelerate(tracker, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    from cggm.integrations.accelerate import log_statistics

    name, last = tracker
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, log_with=name, project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    model = small_model()
    optimizer = wrap(model)
    train(model, optimizer, steps=1)
    for step in (1, 2):  # W&B shows a step once the next one is logged
        log_statistics(accelerator, accelerator.prepare(optimizer), step=step)
    assert last("scores/audio") == pytest.approx(optimizer.statistics["scores"][0].item())
    assert last("loss") == pytest.approx(optimizer.statistics["loss"].item())


def test_lightning(tracker, tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    from cggm.integrations.lightning import BalanceCallback
    from with_accelerate import data

    name, last = tracker
    logger = (
        WandbLogger(offline=True, save_dir=str(tmp_path))
        if name == "wandb"
        else MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    )
    callback = BalanceCallback(lambda batch: batch[-1], every=4)
    trainer = lightning.Trainer(
        max_steps=8, logger=logger, callbacks=[callback], accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lightning_module(returns_rows=False), DataLoader(data(), batch_size=32))
    found = callback.optimizer.statistics["coefficients"][1].item()
    assert last("coefficients/image") == pytest.approx(found)
    assert found != 1


def test_the_trainer(tracker, tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.integrations import MLflowCallback, WandbCallback

    from cggm.integrations.transformers import BalanceCallback
    from with_transformers import Pairs

    name, last = tracker
    model = unlabelled_clip()
    optimizer = CGGMOptimizerWrapper(
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        model,
        encoders=model.encoders,
        head="head",
        policy=CGGM(),
    )
    balance = BalanceCallback(optimizer)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=32, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=2, disable_tqdm=True,
    )  # fmt: skip
    reporter = WandbCallback() if name == "wandb" else MLflowCallback()
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Pairs(), optimizers=(optimizer, None),
        compute_loss_func=balance.loss, callbacks=[balance, reporter],
    )  # fmt: skip
    trainer.train()
    entry = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    key = "balance/coefficients/text"
    assert last(f"train/{key}" if name == "wandb" else key) == pytest.approx(entry[key])
