"""What is wrong with an experiment, found before anything trains."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .experiment import Experiment, Split, Splits
from .own import explain

ROWS = 2  # enough to run the model


def check_experiment(experiment: Experiment, *, seed: int, optimizers: Iterable[str]) -> Splits:
    """Load the data and run the model on two rows; refuse whatever cannot train.

    Args:
        experiment: what to check.
        seed: seed of the data.
        optimizers: names that need a learning rate.

    Returns:
        The data.

    Raises:
        ValueError: names the part of the experiment that is wrong, what is allowed and what was found.
    """
    try:
        _check_fields(experiment, optimizers)
        data = _check_data(experiment, seed)
        _check_model(experiment, data.train)
    except ValueError as error:
        raise ValueError(f"experiment {experiment.name!r}: {error}") from error
    return data


def _check_fields(experiment: Experiment, optimizers: Iterable[str]) -> None:
    if len(experiment.encoders) < 2:
        raise ValueError(f"encoders must name at least two modalities, got {list(experiment.encoders)}")
    for name in optimizers:
        rate = experiment.learning_rates.get(name)
        if not isinstance(rate, (int, float)) or not rate > 0:
            raise ValueError(
                f"learning_rates needs a positive rate for {name!r}, it has {dict(experiment.learning_rates)}"
            )


def _check_data(experiment: Experiment, seed: int) -> Splits:
    try:
        data = experiment.load(seed)
    except ValueError:  # of a loader, or as clear as one of its own
        raise
    except Exception as error:
        raise ValueError(f"load({seed}) failed: {explain(error)}") from error
    if not isinstance(data, Splits):
        raise ValueError(f"load must return Splits(train, validation, test), got {type(data).__name__}")
    for name, part in data._asdict().items():
        if not isinstance(part, Split):
            raise ValueError(f"{name} part: must be Split(inputs, target), got {type(part).__name__}")
        _check_target(name, part.target)
        if len(part.inputs) != len(experiment.encoders):
            modalities = list(experiment.encoders)
            raise ValueError(
                f"{name} part: must have one input for each of {modalities}, got {len(part.inputs)}"
            )
        for modality, values in zip(experiment.encoders, part.inputs, strict=True):
            _check_input(f"{name} part, input {modality!r}", values, len(part.target))
    return data


def _check_target(part: str, target: Tensor) -> None:
    if not isinstance(target, Tensor) or target.dim() != 1 or target.dtype != torch.int64:
        found = (
            f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        )
        raise ValueError(
            f"{part} part: target must be an int64 tensor [N] of classes, got {found}; call .long()"
        )
    if len(target) == 0:
        raise ValueError(f"{part} part: is empty")
    if target.min() < 0:
        raise ValueError(f"{part} part: target must hold classes from 0 on, got {int(target.min())}")


def _check_input(place: str, values: Tensor, rows: int) -> None:
    if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != rows:
        found = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{place}: must be a tensor of {rows} rows, as many as targets, got {found}")
    if values.dtype == torch.float64:
        raise ValueError(f"{place}: must not be float64, since models have float32 parameters; call .float()")
    if values.is_floating_point() and not values.isfinite().all():
        raise ValueError(
            f"{place}: must be finite, got {int((~values.isfinite()).sum())} NaN or infinite values"
        )


def _check_model(experiment: Experiment, train: Split) -> None:
    model = _made(experiment.model, "model")
    names = [name for name, _ in model.named_modules() if name]
    for what, path in [
        *((f"encoders[{m!r}]", p) for m, p in experiment.encoders.items()),
        ("head", experiment.head),
    ]:
        if path not in names:
            close = difflib.get_close_matches(path, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; it has {names[:12]}"
            raise ValueError(f"{what}: the model has no module {path!r}{hint}")
    model.eval()  # batch normalization would learn from the two rows
    inputs = [x[:ROWS].clone().requires_grad_(x.is_floating_point()) for x in train.inputs]
    features, logits = _run(experiment, model, inputs)
    rows = len(inputs[0])
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != rows:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: must return logits [{rows}, classes] for {rows} rows, got {found}")
    if train.target.max() >= logits.shape[1]:
        raise ValueError(
            f"target: must hold classes from 0 to {logits.shape[1] - 1}, one per logit of the model, "
            f"got {int(train.target.max())}"
        )
    _check_order(list(experiment.encoders), list(features.values()), inputs)
    for modality, values in features.items():
        classifier = _made(experiment.classifier, "classifier").eval()
        try:
            found = list(classifier(values).shape)
        except Exception as error:
            raise ValueError(
                f"classifier: fails on the features {list(values.shape)} of {modality!r}: {explain(error)}"
            ) from error
        if found != list(logits.shape):
            raise ValueError(f"classifier: must return {list(logits.shape)} for {modality!r}, got {found}")


def _made(make: object, name: str) -> nn.Module:
    try:
        module = make()
    except Exception as error:
        raise ValueError(f"{name}() failed: {explain(error)}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{name}: must be a function that returns a torch.nn.Module, got {type(module).__name__}"
        )
    return module


def _run(experiment: Experiment, model: nn.Module, inputs: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Features by modality and the model's output."""
    features: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, modality=modality: features.__setitem__(modality, output)
        )
        for modality, path in experiment.encoders.items()
    ]
    try:
        output = model(*inputs)
    except Exception as error:
        shapes = {m: list(x.shape) for m, x in zip(experiment.encoders, inputs, strict=True)}
        raise ValueError(
            f"model: fails on inputs {shapes}, in the order of encoders: {explain(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for modality in experiment.encoders:
        found = features.get(modality)
        if not isinstance(found, Tensor):
            got = "was not called" if found is None else f"returned {type(found).__name__}"
            raise ValueError(f"encoders[{modality!r}]: the encoder must run and return a tensor, it {got}")
    return {modality: features[modality] for modality in experiment.encoders}, output


def _check_order(modalities: list[str], features: list[Tensor], inputs: list[Tensor]) -> None:
    """Refuse encoders that are named in another order than the model's arguments."""
    traced = [i for i, x in enumerate(inputs) if x.requires_grad]
    for i, (modality, values) in enumerate(zip(modalities, features, strict=True)):
        if i not in traced or not values.requires_grad:
            continue
        given = [inputs[k] for k in traced]
        reached = torch.autograd.grad(values.sum(), given, allow_unused=True, retain_graph=True)
        read = [k for k, gradient in zip(traced, reached, strict=True) if gradient is not None]
        if read and i not in read:
            raise ValueError(
                f"encoders: must be in the order of the model's arguments; {modality!r} is number {i + 1} but reads "
                f"argument {read[0] + 1}"
            )
