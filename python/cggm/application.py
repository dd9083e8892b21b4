"""Where coefficients act on parameters: on their gradients, or on what the optimizer makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from cggm_ops import batched_cosine, modulate_, scale_

from .policies.base import Application, Policy

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
    for device, (grads, owners) in _by_device((p.grad, i) for p, i in owned if p.grad is not None).items():
        scales = coefficients.to(device)
        if fusion is not None and fusion.device == device:
            cosines, sums = modulate_(grads, owners, scales, fusion, unimodal)
        else:
            sums = scale_(grads, owners, scales)
        squared += sums[:-1].to(squared.device)
    if cosines is None:
        cosines = head_cosines(fusion, unimodal, coefficients)
    return cosines, squared.sqrt().float()


def _by_device(tensors: Iterable[tuple[Tensor, int]]) -> dict[torch.device, tuple[list[Tensor], list[int]]]:
    devices: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
    for tensor, owner in tensors:
        grads, owners = devices.setdefault(tensor.device, ([], []))
        grads.append(tensor)
        owners.append(owner)
    return devices


def head_cosines(fusion: Tensor | None, unimodal: Sequence[Tensor], like: Tensor) -> Tensor:
    """Cosines `[M]` of the head's gradient with each classifier's; zeros where the head has none."""
    return torch.zeros_like(like) if fusion is None else batched_cosine(fusion, unimodal)


def gradient_norms(owned: Owned, like: Tensor) -> Tensor:
    """Norms `[M]` of the encoders' gradients as they are now; zeros where there are none."""
    squared = torch.zeros(like.numel(), dtype=torch.float64, device=like.device)  # [M]
    for index in range(like.numel()):
        grads = [p.grad for p, owner in owned if owner == index and p.grad is not None]
        if grads:
            norms = torch.stack([n.to(like.device) for n in torch._foreach_norm(grads, dtype=torch.float32)])
            squared[index] = norms.double().square().sum()
    return squared.sqrt().float()


class UpdateScaling:
    """Scales what an optimizer step does to the encoders: `θ ← θ_before + c_i (θ_after − θ_before)`.

    Everything that the optimizer does counts as its update, decoupled weight decay included. Holds one copy of
    the encoders' trainable parameters between construction, before the step, and `apply`, after it.
    """

    def __init__(self, owned: Owned) -> None:
        trainable = [(p.detach(), owner) for p, owner in owned if p.requires_grad]
        self._parameters = [p for p, _ in trainable]
        self._owners = [owner for _, owner in trainable]
        self._before = [p.clone() for p in self._parameters]

    def apply(self, coefficients: Tensor) -> None:
        """Rescale the step that was taken since construction by the coefficients `[M]`."""
        updates = torch._foreach_sub(self._parameters, self._before)
        for device, (part, owners) in _by_device(zip(updates, self._owners, strict=True)).items():
            scale_(part, owners, coefficients.to(device))
        torch._foreach_add_(self._before, updates)
        torch._foreach_copy_(self._parameters, self._before)
