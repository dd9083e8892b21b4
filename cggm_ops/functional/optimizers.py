"""Public optimizer steps that read the modulated gradient in registers: no pass over memory for the modulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cggm_ops import schema


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Hyper-parameters of `adamw_`, named and meant as in `torch.optim.AdamW`.

    `decoupled=False` is `torch.optim.Adam`: the weight decay is part of the gradient then, after
    `grad_scale`.

    >>> AdamSettings(lr=0.1).betas
    (0.9, 0.999)
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True
    maximize: bool = False


@dataclass(frozen=True, kw_only=True)
class SGDSettings:
    """Hyper-parameters of `sgd_`, named and meant as in `torch.optim.SGD`.

    >>> SGDSettings(lr=0.1).momentum
    0.0
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """What an optimizer step does beside the optimizer's own rule. All on the device of the parameters.

    Args:
        owner: which entry of the two scales belongs to each parameter, -1 for neither.
        grad_scale: [M], float32 or float64, multiplies the gradients before the rule sees them. Coefficients,
            the factor that clips, and the reciprocal of a loss scale all go in here.
        update_scale: [M], float32 or float64, multiplies what the rule does to the parameters, decoupled
            weight decay included, and leaves its state alone: a learning rate per modality.

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
    `grad_scale` and `update_scale`. Computed in float32 (float64 for float64) and rounded once. The gradients
    are only read.

    Args:
        params: S tensors of any shapes without gaps in memory; float32, bfloat16, float16 or float64;
            mutated.
        grads: S tensors of the shapes and dtypes of `params`; strides that differ cost a copy.
        exp_avgs: m, S tensors like `params` down to the strides; mutated.
        exp_avg_sqs: v, likewise; mutated.
        steps: t before this step, S single numbers, float32 or float64, on the CPU or beside the parameters;
            raised by 1.
        settings: the hyper-parameters.
        modulation: the scales, and whose they are.

    Raises:
        ValueError: lists of different lengths, tensors that do not fit their parameter, an owner out of
            range, shared memory, another device; nothing has been changed then.
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
    with d = b, g + μb with `nesterov`, or g where the momentum μ is 0; c_s and u_s are the entries of
    `grad_scale` and `update_scale`. Computed in float32 (float64 for float64) and rounded once. The gradients
    are only read.

    Args:
        params: S tensors of any shapes without gaps in memory; float32, bfloat16, float16 or float64;
            mutated.
        grads: S tensors of the shapes and dtypes of `params`; strides that differ cost a copy.
        momentum_buffers: b, S tensors like `params` down to the strides, mutated; none where the momentum is
            0.
        settings: the hyper-parameters.
        modulation: the scales, and whose they are.
        first: the momentum buffers hold nothing yet and are only written.

    Raises:
        ValueError: as `adamw_`; nothing has been changed then.
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
