"""What one forward pass left behind: the encoders' features, and how the classifiers read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..tasks.structures import first_tensor
from .presence import Presence, read_present

if TYPE_CHECKING:
    from .multimodal import MultimodalModel
    from .reading import FeatureReader


class CapturedRun(NamedTuple):
    """The features recorded in one forward pass."""

    captured: Sequence[Tensor | None]  # M features, as the encoders put them out; None if one did not run
    features: Sequence[Tensor | None]  # M, as the classifiers read them
    masks: Sequence[Tensor | None]  # M masks of their positions
    samples: int
    presence: Presence | None  # which samples have which modality; None if all have all


def read_run(
    model: MultimodalModel,
    number: int,
    captured: Sequence[Tensor | None],
    target: Any,
    *,
    detach: bool,
    several: bool,
    present: Mapping[str, Tensor | bool] | None,
) -> CapturedRun:
    """Read the features of one forward pass as the classifiers take them.

    Args:
        model: its readers know the layouts.
        number: which of the passes of this loss.
        captured: M features; None where an encoder did not run.
        target: tells how many samples there are where no features do.
        detach: whether the classifiers see detached features.
        several: whether the loss comes from other passes, too.
        present: as in `balance()`.

    Raises:
        TypeError: features in a nested tensor.
        ValueError: passes of several sizes, or whatever a layout, a mask or `present` does not fit; as `check_drawn`.
    """
    samples = count_samples(model.readers, captured, target)
    if several and isinstance(target, Tensor) and target.ndim and samples != target.shape[0]:
        raise ValueError(
            f"target has {target.shape[0]} samples, and forward pass {number + 1} of this loss had {samples}: its "
            "classifiers need one target for each; give balance() the target of one view, and every pass its size"
        )
    presence = None
    if present is not None:
        sizes = [None if x is None else r.samples(x) for r, x in zip(model.readers, captured, strict=True)]
        presence = read_present(present, model.encoders.names, captured, sizes, target, samples)
    read: list[tuple[Tensor | None, Tensor | None]] = []
    parts = zip(model.readers, captured, model.encoders.hooks, model.encoders.parts(), strict=True)
    for index, (reader, x, hook, modules) in enumerate(parts):
        if x is None:
            read.append((None, None))
            continue
        if x.is_nested and not callable(model.encoders.layouts[hook.name]):
            raise TypeError(
                f"encoders[{hook.name!r}] puts out a nested tensor, which the classifier cannot read: let it put out a "
                "padded one, torch.nested.to_padded_tensor(x, 0.0), and say with Encoder(..., mask=...) what counts"
            )
        inputs = hook.inputs[number] if hook.inputs else None
        seen = x.detach() if detach else model.guard.gate(index, x)
        features, mask = reader.read(seen, inputs, samples, modules)
        read.append((features if presence is None else presence.without_absent(index, features), mask))
    check_drawn(model, number, target)
    features, masks = zip(*read, strict=True)
    return CapturedRun(captured, features, masks, samples, presence)


def count_samples(readers: Sequence[FeatureReader], captured: Sequence[Tensor | None], target: Any) -> int:
    """How many samples a forward pass had: by its features where their layouts say it, else by the target.

    Raises:
        ValueError: neither says it.
    """
    found = [r.samples(x) for r, x in zip(readers, captured, strict=True) if x is not None]
    known = next((size for size in found if size is not None), None)
    given = first_tensor(target)
    if known is None and given is None:
        raise ValueError(
            "balance() cannot tell how many samples there are, neither from the features nor from a target without "
            'tensors: say it in a layout, as in Encoder(..., layout="B D") or layout="(B 3) D H W"'
        )
    return given.shape[0] if known is None else known


def check_drawn(model: MultimodalModel, number: int, target: Any) -> None:
    """Refuse modality dropout that took another axis for the samples than the target has.

    Raises:
        ValueError: the numbers differ, and not every encoder's layout says which axis holds the samples.
    """
    mask = model.encoders.mask
    drawn = None if mask is None else mask.drawn(number)
    if drawn is None or not isinstance(target, Tensor) or not target.ndim or target.shape[0] == drawn:
        return
    names = zip(model.encoders.names, model.readers, strict=True)
    unsaid = [name for name, reader in names if not reader.knows_axes]
    if unsaid:
        raise ValueError(
            f"modality dropout took the first axis of the features for the samples and drew for {drawn}, but the "
            f"target has {target.shape[0]}: say in words where the samples of {unsaid} are, as in "
            'Encoder(..., layout="T B D") or layout="(B T) D"'
        )
