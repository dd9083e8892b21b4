"""Callbacks for Lightning and the Trainer, trackers of Accelerate, and the live view, with the real packages."""

import sys

import pytest
import torch
from loops import lightning_module, unlabelled_clip
from torch.utils.data import DataLoader

from cggm import CGGM, CGGMOptimizerWrapper
from helpers import flat, small_model, train, wrap


def test_lightning_balances_and_logs():
    lightning = pytest.importorskip("lightning")
    from cggm.integrations.lightning import BalanceCallback
    from with_accelerate import data

    class Logger(lightning.pytorch.loggers.logger.DummyLogger):
        def __init__(self):
            super().__init__()
            self.seen = {}

        def log_metrics(self, metrics, step=None):
            self.seen[step] = metrics

    logger = Logger()
    torch.manual_seed(0)
    module = lightning_module(returns_rows=True)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"max_epochs": 1, "enable_checkpointing": False, "logger": logger}
    options["callbacks"] = [BalanceCallback(lambda batch: batch[-1], every=8)]
    trainer = lightning.Trainer(gradient_clip_val=1.0, **options)
    trainer.fit(module, DataLoader(data(), batch_size=32))
    assert sorted(logger.seen) == [8, 16]
    assert {"coefficients/audio", "loss", "scores/image"} <= set(logger.seen[16])
    assert logger.seen[16]["coefficients/audio"] != 1
    assert "training_step" not in module.__dict__

    module = lightning_module(returns_rows=True)
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic optimization"):
        lightning.Trainer(**options).fit(module, DataLoader(data(), batch_size=32))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_trainer_balances_without_a_subclass(tmp_path, parts):
    transformers = pytest.importorskip("transformers")
    from cggm.integrations.transformers import BalanceCallback
    from with_transformers import Pairs

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
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=32 // parts, use_cpu=True,
        gradient_accumulation_steps=parts, report_to=[], save_strategy="no", logging_steps=5, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Pairs(), eval_dataset=Pairs(), optimizers=(optimizer, None),
        compute_loss_func=balance.loss, callbacks=[balance],
    )  # fmt: skip
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    assert all("balance/coefficients/text" in entry for entry in entries)
    assert entries[-1]["balance/loss"] < entries[0]["balance/loss"]
    assert trainer.evaluate()["eval_loss"] < 1.4  # the multimodal loss alone

    with pytest.raises(ValueError, match="label_names"):
        balance.loss({"logits": torch.zeros(2, 4)}, None)

    scaled = wrap(small_model(), policy=CGGM(), apply="gradient")
    with pytest.raises(ValueError, match="max_grad_norm"):
        BalanceCallback(scaled).on_train_begin(arguments, None, None)


def test_accelerate_tracks_the_statistics(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    from cggm.integrations.accelerate import log_statistics

    class Tracker(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory = "kept", False
        tracker, main_process_only = None, False

        def __init__(self):
            super().__init__()
            self.entries = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **_):
            self.entries.append((step, values))

    AcceleratorState._reset_state(reset_partial_state=True)
    tracker = Tracker()
    accelerator = accelerate.Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("run")
    model = small_model()
    optimizer = wrap(model)
    train(model, optimizer, steps=1)
    log_statistics(accelerator, accelerator.prepare(optimizer), step=3)
    assert tracker.entries == [(3, optimizer.statistics.scalars())]
    with pytest.raises(TypeError, match="CGGMOptimizerWrapper"):
        log_statistics(accelerator, torch.optim.SGD(model.parameters()), step=0)


def test_the_live_view_draws_and_changes_nothing():
    console = pytest.importorskip("rich.console").Console(force_terminal=True, width=90, record=True)
    from cggm.integrations.live import LiveView

    models, optimizers = [], []
    for _ in range(2):  # the model seeds the random numbers that the classifiers draw from
        models.append(small_model())
        optimizers.append(wrap(models[-1]))
    with console.capture() as drawn, LiveView(optimizers[0], every=2, console=console) as view:
        for _ in range(4):
            for model, optimizer in zip(models, optimizers, strict=True):
                train(model, optimizer, steps=1)
            view.update()
    assert torch.equal(flat(models[0]), flat(models[1]))
    assert "coefficients/audio" in drawn.get()
    assert "step 4" in drawn.get()


def test_importing_cggm_imports_nothing_optional():
    import subprocess

    code = (
        "import sys, cggm, cggm.integrations; "
        "print([n for n in ('rich', 'matplotlib', 'lightning', 'transformers', 'accelerate', 'pandas', 'sklearn', "
        "'tensorboard') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
