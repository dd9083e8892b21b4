"""Where coefficients act on parameters: on their gradients, or on what the optimizer makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.optim import Optimizer

from cggm_ops import batched_cosine, modulate_, scale_, segment_combine_

from ..distributed.collectives import Groups, first_ranks_, is_sharded, local, shard_groups, sum_over_shards
from ..policies.base import Application, Policy

Owned = Sequence[tuple[Tensor, int]]  # parameters with the index of their modality


def choose_application(policy: Policy, apply: str, optimizer: Optimizer) -> Application:
    """Where the policy's coefficients act: as asked, or with `"auto"` what it prefers with this optimizer.

    Raises:
        TypeError: not a policy.
        ValueError: a place where this policy cannot act.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a cggm Policy such as CGGM(), got {type(policy).__name__}")
    choices = policy.applications(adaptive="sgd" not in type(optimizer).__name__.lower())
    if apply != "auto" and apply not in choices:
        raise ValueError(
            f"apply must be 'auto' or one of {choices} with {type(policy).__name__}, got {apply!r}"
        )
    return choices[0] if apply == "auto" else apply  # type: ignore[return-value]


def check_updated(owned: Owned, names: Sequence[str], optimizer: Optimizer) -> None:
    """Refuse `apply="update"` for an encoder of which the optimizer steps no parameter.

    Raises:
        ValueError: there is such an encoder, and it is not frozen.
    """
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    for index, name in enumerate(names):
        trained = [p for p, owner in owned if owner == index and p.requires_grad]
        if trained and stepped.isdisjoint(trained):
            raise ValueError(
                f"apply='update' scales what this optimizer does, but it has no parameter of encoder {name!r}: "
                "pass 'gradient' or 'feature', or an optimizer over the parameters that the model has now"
            )


def scale_gradients_(
    owned: Owned, coefficients: Tensor, fusion: Tensor | None, unimodal: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Multiply every encoder's gradients by its coefficient, in place, and measure them on the way.

    One launch where everything lies on one device, one more for each further device.

    Args:
        owned: the encoders' parameters; those without a gradient are passed over.
        coefficients: `[M]`.
        fusion: gradient of the head's weight, or None where it has none.
        unimodal: M gradients of the classifiers' output weights, or none.

    Returns:
        Cosines `[M]` (zeros without `fusion`) and gradient norms `[M]` after scaling.
    """
    cosines = None
    squared = torch.zeros(coefficients.numel(), dtype=torch.float64, device=coefficients.device)  # [M]
    for (device, groups), (grads, owners) in _by_place(_gradients(owned)).items():
        scales = coefficients.to(device)
        if fusion is not None and fusion.device == device and not is_sharded(fusion):
            cosines, sums = modulate_(grads, owners, scales, fusion, unimodal)
        else:
            sums = scale_(grads, owners, scales)
        squared += sum_over_shards(sums[:-1], groups).to(squared.device)
    if cosines is None:
        cosines = head_cosines(fusion, unimodal, coefficients)
    return cosines, squared.sqrt().float()


def _gradients(owned: Owned) -> Iterable[tuple[Tensor, int, Groups]]:
    """Dense gradients in this process: of a sparse one the values, of a sharded one the local shard."""
    for parameter, owner in owned:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            if not gradient.is_coalesced():  # rows that occur twice have to be added up for the norm
                parameter.grad = gradient = gradient.coalesce()
            yield gradient._values(), owner, ()
        else:
            yield local(gradient), owner, shard_groups(gradient)


def _by_place(
    tensors: Iterable[tuple[Tensor, int, Groups]],
) -> dict[tuple[torch.device, Groups], tuple[list[Tensor], list[int]]]:
    """Tensors and their owners by device and by the process groups that hold their other shards."""
    places: dict[tuple[torch.device, Groups], tuple[list[Tensor], list[int]]] = {}
    for tensor, owner, groups in tensors:
        part, owners = places.setdefault((tensor.device, groups), ([], []))
        part.append(tensor)
        owners.append(owner)
    return places


def deviations(owned: Owned) -> list[Tensor]:
    """Standard deviations `std(g) + 1e-8` of the encoders' gradients, each 0-dimensional; of one element, `1e-8`."""
    return [
        gradient.float().std(correction=min(1, gradient.numel() - 1)) + 1e-8
        for gradient, _, _ in _gradients(owned)
    ]


def add_noise_(owned: Owned, strengths: Sequence[Tensor]) -> None:
    """Add Gaussian noise to the encoders' gradients, in place, drawn on their devices: the first rank's on every rank.

    Args:
        owned: the encoders' parameters; their gradients are mutated.
        strengths: what `deviations` said of the same gradients.
    """
    numbered = ((gradient, i, ()) for i, (gradient, _, _) in enumerate(_gradients(owned)))
    for gradients, numbers in _by_place(numbered).values():
        sigmas = torch.stack([strengths[i] for i in numbers])  # [S]
        noise = [torch.randn_like(gradient) for gradient in gradients]
        first_ranks_(noise)  # or the processes' models would drift apart
        segment_combine_([gradients], torch.ones_like(sigmas)[:, None], noise=noise, deviations=sigmas)


def modulate_gradients_(
    owned: Owned,
    policy: Policy,
    application: Application,
    coefficients: Tensor,
    heads: tuple[Tensor | None, Sequence[Tensor]],
) -> dict[str, Tensor]:
    """What the policy does to the encoders' gradients after the backward pass: coefficients there, then noise.

    Args:
        owned: the encoders' parameters; their gradients are mutated.
        policy: whether it has coefficients and noise.
        application: whether the coefficients act on gradients.
        coefficients: `[M]`.
        heads: gradients of the head's weight (or None) and of the classifiers' output weights.

    Returns:
        `cosines` `[M]`, and `grad_norms` `[M]` where they came for nothing.
    """
    strengths = deviations(owned) if policy.noise else None
    measured: dict[str, Tensor] = {}
    if application == "gradient" and "coefficients" in policy.places:
        measured["cosines"], measured["grad_norms"] = scale_gradients_(owned, coefficients, *heads)
    else:
        measured["cosines"] = head_cosines(*heads, coefficients)
    if strengths is not None:
        add_noise_(owned, strengths)
        measured.pop("grad_norms", None)  # of before the noise
    return measured


def head_cosines(fusion: Tensor | None, unimodal: Sequence[Tensor], like: Tensor) -> Tensor:
    """Cosines `[M]` of the head's gradient with each classifier's; zeros where the head has none."""
    if fusion is None:
        return torch.zeros_like(like)
    if not is_sharded(fusion):
        return batched_cosine(fusion, unimodal)
    shard = local(fusion).double().flatten()  # [D of this rank]
    others = torch.stack([local(u).double().flatten() for u in unimodal])  # [M, D of this rank]
    sums = torch.cat([shard.square().sum()[None], others.square().sum(1), others @ shard])  # [1 + 2 M]
    square, squares, products = sum_over_shards(sums, shard_groups(fusion)).split(
        [1, len(others), len(others)]
    )
    norms = (square * squares).sqrt()
    return torch.where(norms > 0, products / norms, 0.0).to(like.dtype)


@torch.no_grad()
def gradient_norms(owned: Owned, coefficients: Tensor, waiting: bool = False) -> Tensor:
    """Norms `[M]` of the encoders' gradients as they are now, zeros where there are none.

    Args:
        owned: the encoders' parameters.
        coefficients: `[M]`.
        waiting: whether the gradients have not been multiplied by them yet, which the norms then are instead.
    """
    squared = torch.zeros(coefficients.numel(), dtype=torch.float64, device=coefficients.device)  # [M]
    for (_, groups), (grads, owners) in _by_place(_gradients(owned)).items():
        wide = torch.float64 if any(g.dtype is torch.float64 for g in grads) else torch.float32
        squares = torch.stack(torch._foreach_norm(grads, dtype=wide)).double().square()  # [S]
        sums = list(torch.zeros_like(squared, device=squares.device))
        runs = [(owner, len(list(run))) for owner, run in groupby(owners)]  # one modality after the other
        for (owner, _), part in zip(runs, squares.split([length for _, length in runs]), strict=True):
            sums[owner] = part.sum()
        squared += sum_over_shards(torch.stack(sums), groups).to(squared.device)
    norms = squared.sqrt().float()
    return norms * coefficients.abs() if waiting else norms


class UpdateScaling:
    """Scales what an optimizer step does to the encoders: `θ ← θ_before + c_i (θ_after − θ_before)`.

    Everything that the optimizer does counts as its update, decoupled weight decay included. Holds one copy of
    the encoders' trainable parameters between construction, before the step, and `apply`, after it.
    """

    def __init__(self, owned: Owned) -> None:
        trainable = [(local(p.detach()), owner) for p, owner in owned if p.requires_grad]
        self._parameters = [p for p, _ in trainable]
        self._owners = [owner for _, owner in trainable]
        self._before = [torch.empty_like(p) for p in self._parameters]
        if trainable:  # `clone` would be a launch for each
            torch._foreach_copy_(self._before, self._parameters)

    def apply(self, coefficients: Tensor) -> None:
        """Rescale the step that was taken since construction by the coefficients `[M]`."""
        updates = torch._foreach_sub(self._parameters, self._before)
        places = _by_place((update, owner, ()) for update, owner in zip(updates, self._owners, strict=True))
        for (device, _), (part, owners) in places.items():
            scale_(part, owners, coefficients.to(device))
        torch._foreach_add_(self._before, updates)
        torch._foreach_copy_(self._parameters, self._before)
