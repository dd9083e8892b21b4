"""The public functions `adamw_` and `sgd_`: optimizer steps that modulate the gradient without a pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cggm_ops import schema
from cggm_ops.checks.optimizers import check_adam_numbers, check_sgd_numbers
from cggm_ops.checks.tensors import check_flags


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Hyper-parameters of `adamw_`, as in `torch.optim.AdamW`.

    With `decoupled=False` they are those of `torch.optim.Adam`: weight decay is added to the gradient, after
    `grad_scale`.

    Raises:
        ValueError: a number that is negative, infinite or NaN, or one of `betas` that is 1 or more.
        TypeError: a flag that is neither True nor False.

    >>> AdamSettings(lr=0.1).betas
    (0.9, 0.999)
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True
    maximize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"betas must be a tuple of two numbers in [0, 1), found {self.betas!r}")
        check_adam_numbers(self.lr, *self.betas, self.eps, self.weight_decay)
        check_flags(decoupled=self.decoupled, maximize=self.maximize)


@dataclass(frozen=True, kw_only=True)
class SGDSettings:
    """Hyper-parameters of `sgd_`, as in `torch.optim.SGD`.

    Raises:
        ValueError: a number that is negative, infinite or NaN.
        TypeError: a flag that is neither True nor False.

    >>> SGDSettings(lr=0.1).momentum
    0.0
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        check_sgd_numbers(self.lr, self.momentum, self.dampening, self.weight_decay)
        check_flags(nesterov=self.nesterov, maximize=self.maximize)


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """How an optimizer step modulates gradients and updates. The scales are on the device of the parameters.

    Args:
        owner: the entry of both scales that belongs to each parameter, or -1 for none.
        grad_scale: [M], float32 or float64, multiplies the gradients before the optimizer's rule: a coefficient,
            a clipping factor, the reciprocal of a loss scale, or a product of them.
        update_scale: [M], float32 or float64, multiplies the change of the parameters, decoupled weight decay
            included, but not the state: a learning rate per modality.

    >>> Modulation(owner=(0, -1)).grad_scale is None
    True
    """

    owner: Sequence[int] = ()
    grad_scale: Tensor | None = None
    update_scale: Tensor | None = None


_NONE = Modulation()


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    settings: AdamSettings,
    modulation: Modulation = _NONE,
) -> None:
    """Take one step of AdamW or Adam on modulated gradients, in one pass over memory.

    g = c_s ∇_s (−c_s ∇_s with `maximize`; + λθ without `decoupled`), m ← m + (1 − β₁)(g − m), v ← β₂v + (1 −
    β₂)g², θ ← (1 − u_s η λ) θ − u_s η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε), with c_s and u_s the entries of
    `grad_scale` and `update_scale`. Computed in float32 (float64 for float64) and rounded once. The gradients do
    not change.

    Args:
        params: S tensors of any shapes without gaps in memory; float32, bfloat16, float16 or float64;
            mutated.
        grads: S tensors of the shapes and dtypes of `params`; copied if their strides differ.
        exp_avgs: m, S tensors with the shapes, dtypes and strides of `params`; mutated.
        exp_avg_sqs: v, likewise; mutated.
        steps: t before this step, S single numbers, float32 or float64, on the CPU or on the device of the
            parameters; incremented.
        settings: the hyper-parameters.
        modulation: the scales and their owners.

    Raises:
        ValueError: lists of different lengths, a tensor that does not fit its parameter, an owner out of range,
            shared memory, another device; nothing has been changed then.
        RuntimeError: a parameter requires grad while autograd records: call this under `torch.no_grad()`.

    Source:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization (ICLR 2019, arXiv 1711.05101), Algorithm
        2; Kingma and Ba, Adam (ICLR 2015, arXiv 1412.6980), Algorithm 1; in the form of `torch.optim`,
        without amsgrad.

    Example:
        >>> import torch
        >>> param, grad, m, v = (torch.tensor([x]) for x in (1.0, 2.0, 0.0, 0.0))
        >>> t = torch.tensor(0.0)
        >>> half = Modulation(owner=[0], update_scale=torch.tensor([0.5]))
        >>> adamw_([param], [grad], exp_avgs=[m], exp_avg_sqs=[v], steps=[t],
        ...        settings=AdamSettings(lr=0.1, weight_decay=0.0), modulation=half)
        >>> param, m, t
        (tensor([0.9500]), tensor([0.2000]), tensor(1.))
    """
    # Only the parameters need protection from autograd, which never follows the optimizer's state.
    m, s = modulation, settings
    scales, numbers = (m.owner, m.grad_scale, m.update_scale), (s.lr, *s.betas, s.eps, s.weight_decay)
    lists = (grads, exp_avgs, exp_avg_sqs, steps)
    schema.mutate(schema.adamw_, "params", params, *lists, *scales, *numbers, s.decoupled, s.maximize)


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    momentum_buffers: Sequence[Tensor] = (),
    settings: SGDSettings,
    modulation: Modulation = _NONE,
    first: bool = False,
) -> None:
    """Take one step of SGD on modulated gradients, in one pass over memory.

    g = c_s ∇_s (−c_s ∇_s with `maximize`) + λθ, b ← μb + (1 − τ)g (b ← g at the first step), θ ← θ − u_s η d
    with d = b, g + μb with `nesterov`, or g if the momentum μ is 0; c_s and u_s are the entries of
    `grad_scale` and `update_scale`. Computed in float32 (float64 for float64) and rounded once. The gradients do
    not change.

    Args:
        params: S tensors of any shapes without gaps in memory; float32, bfloat16, float16 or float64;
            mutated.
        grads: S tensors of the shapes and dtypes of `params`; copied if their strides differ.
        momentum_buffers: b, S tensors with the shapes, dtypes and strides of `params`; mutated. Empty if the
            momentum is 0.
        settings: the hyper-parameters.
        modulation: the scales and their owners.
        first: this is the first step: the momentum buffers are written but not read.

    Raises:
        ValueError: as for `adamw_`; nothing has been changed then.
        RuntimeError: a parameter requires grad while autograd records: call this under `torch.no_grad()`.

    Source:
        Sutskever et al., On the importance of initialization and momentum in deep learning (ICML 2013), in
        the form of `torch.optim.SGD`.

    Example:
        >>> import torch
        >>> param, grad = torch.tensor([1.0]), torch.tensor([2.0])
        >>> sgd_([param], [grad], settings=SGDSettings(lr=0.1),
        ...      modulation=Modulation(owner=[0], grad_scale=torch.tensor([3.0])))
        >>> param
        tensor([0.4000])
    """
    m, s = modulation, settings
    scales, numbers = (m.owner, m.grad_scale, m.update_scale), (s.lr, s.momentum, s.dampening, s.weight_decay)
    lists, flags = (grads, momentum_buffers), (s.nesterov, s.maximize, first)
    schema.mutate(schema.sgd_, "params", params, *lists, *scales, *numbers, *flags)
