"""An error at any line of this library in a step: tried again it is exact, or it is refused and the batch is dropped.

A trace function raises KeyboardInterrupt or OutOfMemoryError at the n-th line that a call runs. Then the call works if
it is called again, and training goes on to the bit as if nothing had happened; or calling it again is refused, and
after zero_grad() training goes on as if there had been no such batch; or the step was complete.

The slow test takes a seventh of the lines. With `CGGM_EVERY_LINE=1` it takes every line, each time that it runs, with
both errors; that is 60,000 of them and takes an hour.
"""

import collections
import dataclasses
import dis
import functools
import itertools
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import cggm
import cggm_ops
from cggm import CGGM, UnimodalLosses, default_policy
from cggm.policies import AGM, DGL, OGMGE, MMPareto, NormEqualization
from helpers import batches, small_model, wrap

FILES = tuple(str(Path(package.__file__).parent) for package in (cggm, cggm_ops))
ERRORS = (KeyboardInterrupt, torch.OutOfMemoryError)
EXPECTED = ("exact", "refused", "complete, and refused", "complete")
REFUSED = r"call zero_grad\(\) and go on|call it once after each forward pass|backward through the graph a second time"


@dataclasses.dataclass(frozen=True)
class Setting:
    policy: object
    apply: str = "auto"
    adam: bool = False
    fused: object = "auto"
    warm: int = 2  # steps before
    max_norm: float | None = None
    modulates: bool = False  # calls modulate() by itself
    flatten: bool = False
    record: bool = False


SETTINGS = {
    "default": Setting(default_policy()),
    "default, first step": Setting(default_policy(), warm=0),
    "default, adamw": Setting(default_policy(), adam=True, max_norm=0.5),
    "bounded, own step": Setting(NormEqualization(bounded=True), fused=False, max_norm=0.5),
    "cggm, feature": Setting(CGGM(smoothing=0.3, lam=0.1), "feature", record=True),
    "cggm, gradient, folded": Setting(CGGM(smoothing=0.3, lam=0.1), "gradient"),
    "cggm, gradient, first step": Setting(CGGM(smoothing=0.3), "gradient", warm=0),
    "cggm, feature, first step": Setting(
        UnimodalLosses() + CGGM(smoothing=0.3), "feature", adam=True, warm=0
    ),
    "cggm, gradient, own step": Setting(CGGM(smoothing=0.3), "gradient", fused=False, modulates=True),
    "cggm, update, folded": Setting(CGGM(smoothing=0.3), "update", adam=True),
    "cggm, update, own step": Setting(CGGM(smoothing=0.3), "update", fused=False, flatten=True),
    "released": Setting(CGGM.released(rho=1.0), "gradient"),
    "noise": Setting(OGMGE()),
    "agm": Setting(AGM()),
    "dgl": Setting(DGL()),
    "unimodal losses": Setting(UnimodalLosses(), fused=True, modulates=True, flatten=True),
    "mmpareto": Setting(MMPareto() + CGGM(smoothing=0.3), "gradient", adam=True),
}


class Training:
    """One model; every batch is a list of named calls."""

    def __init__(self, setting):
        self.setting = setting
        self.model = small_model()
        parameters = self.model.parameters()
        base = (
            torch.optim.AdamW(parameters, lr=0.01)
            if setting.adam
            else torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        )
        torch.manual_seed(3)
        options = {"apply": setting.apply, "fused": setting.fused, "flatten": setting.flatten}
        self.optimizer = wrap(self.model, base, setting.policy, **options)
        self.optimizer.max_norm = setting.max_norm
        self.optimizer.record = setting.record
        self.batches = list(batches(setting.warm + 3, size=8))
        for number in range(setting.warm):
            self.train(number)

    def calls(self, number):
        """The calls of one batch, by name."""
        inputs, target = self.batches[number]
        losses = {}

        def forward():
            torch.manual_seed(number)
            losses["multimodal"] = F.cross_entropy(self.model(*inputs), target)

        def balance():
            losses["balanced"] = self.optimizer.balance(losses["multimodal"], target)

        calls = {"zero_grad": self.optimizer.zero_grad, "forward": forward, "balance": balance}
        calls["backward"] = lambda: losses["balanced"].backward()
        if self.setting.modulates:
            calls["modulate"] = self.optimizer.modulate
        return calls | {"step": self.optimizer.step}

    def train(self, number):
        for call in self.calls(number).values():
            call()

    def finish(self):
        """Train on the last two batches; what training has left then, in one vector."""
        found = []
        for number in (-2, -1):
            self.train(number)
            found += [self.optimizer.statistics[name] for name in ("scores", "coefficients", "grad_norms")]
        found = torch.cat([self.parameters(), vector([self.optimizer.state_dict(), found])])
        self.optimizer.detach()  # else its finalizer runs lines, some time or other
        return found

    def parameters(self):
        return vector(list(self.model.parameters()))

    def check_intact(self):
        """No encoder is replaced, no mode switched, no hook left."""
        assert torch.is_grad_enabled()
        hooks = self.optimizer._model.encoders.hooks
        assert all("forward" not in module.__dict__ and module.training for module in self.model.modules())
        assert not any(hook.passing for hook in hooks)
        assert [len(m._forward_hooks) for m in self.model.encoders.values()] == [1, 1]
        assert not self.optimizer.base._optimizer_step_pre_hooks
        assert not self.optimizer.base._optimizer_step_post_hooks


def vector(tree):
    leaves = [
        torch.as_tensor(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor | int | float)
    ]
    return torch.cat([leaf.detach().double().flatten() for leaf in leaves]).nan_to_num(1e9)


@functools.cache
def exits(code):
    """Where a `with` block calls `__exit__`: Python looks for no signal there, and nothing can fail."""
    pairs = itertools.pairwise(dis.get_instructions(code))
    return {
        one.offset
        for one, other in pairs
        if one.argval is None and (other.argval is None) and one.opname == "LOAD_CONST"
    }


@contextmanager
def raising(error=None, at=-1):
    """Raise at this line that runs in the block, counted from 0; yields the lines that ran, where none is raised."""
    lines = []

    def trace(frame, event, _argument):
        if not frame.f_code.co_filename.startswith(FILES):
            return None
        if event == "line" and frame.f_lasti not in exits(frame.f_code):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) == at + 1:
                raise error("injected")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


class Injection:
    """Injects errors into the third batch of one setting, and compares with training where there was none."""

    def __init__(self, setting):
        self.setting = setting
        training = Training(setting)
        self.before = training.parameters()
        self.dropped = training.finish()
        training = Training(setting)
        self.lines = {}
        for name, call in training.calls(setting.warm).items():
            with raising() as self.lines[name]:
                call()
        self.after = training.parameters()
        self.whole = training.finish()
        assert not torch.equal(self.before, self.after)

    @torch.enable_grad()
    def __call__(self, phase, at, error):
        """What came of an error at this line of this call."""
        training = Training(self.setting)
        calls = training.calls(self.setting.warm)
        names = list(calls)
        for name in names[: names.index(phase)]:
            calls[name]()
        with pytest.raises(error), raising(error, at):
            calls[phase]()
        training.check_intact()
        complete = phase == "step" and torch.equal(training.parameters(), self.after)
        if complete and training.optimizer._state.unrepeatable is None:
            assert torch.equal(training.finish(), self.whole)
            return "complete"
        try:
            calls[phase]()
        except RuntimeError:
            with pytest.raises(RuntimeError, match=REFUSED):
                raise
            del calls
            training.optimizer.zero_grad()
            assert torch.equal(training.parameters(), self.after if complete else self.before)
            assert torch.equal(training.finish(), self.whole if complete else self.dropped)
            return "complete, and refused" if complete else "refused"
        assert not complete
        for name in names[names.index(phase) + 1 :]:
            calls[name]()
        assert torch.equal(training.parameters(), self.after)
        assert torch.equal(training.finish(), self.whole)
        return "exact"

    def points(self, every):
        """Calls and lines to raise at: every time that a line runs, or the first and the last time."""
        for phase in sorted(self.lines.keys() - {"forward"}):
            lines = self.lines[phase]
            first = {line: at for at, line in reversed(list(enumerate(lines)))}
            last = {line: at for at, line in enumerate(lines)}
            for at, line in enumerate(lines):
                if every or at in (first[line], last[line]):
                    yield phase, at


def inject(name, every=False, share=1):
    injection = Injection(SETTINGS[name])
    outcomes, wrong = collections.Counter(), []
    for number, (phase, at) in enumerate(list(injection.points(every))[::share]):
        for error in ERRORS if every else ERRORS[number % 2 :][:1]:
            outcome = described(injection, phase, at, error)
            outcomes[outcome] += 1
            if outcome not in EXPECTED:
                wrong.append(outcome)
    print(name, dict(outcomes))  # shown with pytest -s
    assert not wrong, "\n".join(wrong)
    assert outcomes["exact"]


def described(injection, phase, at, error):
    """What came of it, or what went wrong and where."""
    try:
        return injection(phase, at, error)
    except Exception as found:
        path, line = injection.lines[phase][at]
        return f"{phase}: {error.__name__} at {Path(path).name}:{line}: {type(found).__name__}: {found}"[:300]


@pytest.mark.parametrize("name", ["default", "cggm, update, own step", "agm"])
def test_errors_at_a_few_lines(name):
    inject(name, share=41)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_errors_at_every_line(name):
    every = os.environ.get("CGGM_EVERY_LINE") == "1"
    inject(name, every, share=1 if every else 7)
