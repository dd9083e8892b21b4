"""Parameters in more than one place of a model: refused, or left out of modulation where the user asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from ..policies.plan import Plan
from .classifiers import ATTACHED


def shared_parameters(
    model: nn.Module, parts: Mapping[str, Sequence[nn.Module]], leave: Collection[str]
) -> set[Tensor]:
    """The parameters that an encoder shares with another encoder or with the rest of the model.

    Args:
        model: the user's model.
        parts: modality -> the modules that its encoder is made of.
        leave: the modalities whose shared parameters are left out of modulation.

    Raises:
        ValueError: two encoders overlap, or a parameter is shared and no modality in `leave` has it.
    """
    _check_overlap(parts)
    places: dict[
        Tensor, dict[str | None, str]
    ] = {}  # parameter -> modality, None for the rest -> its name there
    prefixes = _prefixes(model, parts)
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if not key.startswith(f"{ATTACHED}."):
            owner = next((name for prefix, name in prefixes if key.startswith(prefix)), None)
            places.setdefault(parameter, {}).setdefault(owner, key)
    shared = {parameter: found for parameter, found in places.items() if len(found) > 1}
    for found in shared.values():
        if not any(name in leave for name in found):
            (first, key), (second, place) = sorted(found.items(), key=lambda item: item[0] is None)[:2]
            raise ValueError(
                f"a parameter is shared: {key} of encoder {first!r} is also {place} of "
                f"{'the rest of the model' if second is None else f'encoder {second!r}'}, and one gradient cannot have "
                "two coefficients: name as encoders only the parts of one modality, untie the weights, or pass "
                'Encoder(..., shared="leave"), which leaves such parameters out of modulation'
            )
    return set(shared)


def check_left_out(shared: Collection[Tensor], leave: Collection[str], plan: Plan) -> None:
    """Refuse a plan that cannot leave shared parameters out of modulation.

    Args:
        shared: the shared parameters.
        leave: the modalities that leave them out.
        plan: what the coefficients scale, and where gradients are combined.
    """
    if not shared or not (plan.combines_at_parameters or plan.scale_at in ("feature", "response")):
        return
    if plan.combines_at_parameters:
        acts, instead = "MMPareto() combines the gradients of encoders' parameters", "take FeaturePareto()"
    else:
        acts = "this policy's coefficients scale what enters an encoder, shared parameters included"
        instead = "take another policy than AGM()"
        if plan.scale_at == "feature":
            instead = "pass apply='gradient' or 'update'"
    raise ValueError(
        f"encoders: {sorted(leave)} leave shared parameters out of modulation, but {acts}: {instead}"
    )


def _prefixes(model: nn.Module, parts: Mapping[str, Sequence[nn.Module]]) -> list[tuple[str, str]]:
    """All names under which the encoders' modules are known, each with its modality."""
    owners = {module: name for name, modules in parts.items() for module in modules}
    named = model.named_modules(remove_duplicate=False)
    return [(f"{path}.", owners[module]) for path, module in named if module in owners]


def _check_overlap(parts: Mapping[str, Sequence[nn.Module]]) -> None:
    """Refuse encoders that are the same module, or one inside the other."""
    for outer, modules in parts.items():
        inside = {module for root in modules for module in root.modules()}
        for name, others in parts.items():
            if name != outer and not inside.isdisjoint(others):
                raise ValueError(
                    f"encoders {outer!r} and {name!r} overlap: a module of {name!r} is one of {outer!r} or lies inside "
                    "it; name modules that run for one modality only, as the projections behind a shared backbone"
                )
