"""adamw_ in Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cggm_ops.checks.optimizers import check_adamw
from cggm_ops.triton import tables
from cggm_ops.triton.tables import CHUNK, ELEMENTS, OPTIONS, read, write


@triton.jit
def factor(scale, stride, modality, IS_GIVEN: tl.constexpr):  # noqa: ANN001, ANN201
    """Return the factor of a modality in float64, or 1."""
    value = tl.full((), 1.0, tl.float64)
    if IS_GIVEN:
        value = tl.load(scale + modality * stride, mask=modality >= 0, other=1.0).to(tl.float64)
    return value


@triton.jit
def adamw_kernel(  # noqa: ANN201
    table,  # noqa: ANN001 [chunks, 4 + COLUMNS]: param, grad, exp_avg, exp_avg_sq
    counts,  # noqa: ANN001 [S]: steps after this one, float64
    grad_scale,  # noqa: ANN001
    grad_stride,  # noqa: ANN001
    update_scale,  # noqa: ANN001
    update_stride,  # noqa: ANN001
    settings,  # noqa: ANN001 [8], float64: see adamw_
    HAS_GRAD_SCALE: tl.constexpr,
    HAS_UPDATE_SCALE: tl.constexpr,
    DECOUPLED: tl.constexpr,
    ELEMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Take one step of AdamW or Adam over one chunk."""
    row = table + tl.program_id(0) * 9
    count, is_fast = tl.load(row + 4), tl.load(row + 5)
    position, modality = tl.load(row + 6), tl.load(row + 7)
    rate = tl.load(settings) * factor(update_scale, update_stride, modality, HAS_UPDATE_SCALE)
    weight_decay, eps = tl.load(settings + 3), tl.load(settings + 2).to(tl.float32)
    steps = tl.load(counts + position)
    root2 = tl.sqrt(1.0 - tl.exp(steps * tl.load(settings + 6))).to(tl.float32)
    step_size = (rate / (1.0 - tl.exp(steps * tl.load(settings + 5)))).to(tl.float32)
    scale = factor(grad_scale, grad_stride, modality, HAS_GRAD_SCALE) * tl.load(settings + 4)
    beta1, beta2 = tl.load(settings + 1), tl.load(settings + 7)

    offsets = tl.arange(0, CHUNK)
    param, exp_avg, exp_avg_sq = tl.load(row), tl.load(row + 2), tl.load(row + 3)
    p = read(param, offsets, count, is_fast, ELEMENT).to(tl.float32)
    g = read(tl.load(row + 1), offsets, count, is_fast, ELEMENT).to(tl.float32) * scale.to(tl.float32)
    m = read(exp_avg, offsets, count, is_fast, ELEMENT).to(tl.float32)
    v = read(exp_avg_sq, offsets, count, is_fast, ELEMENT).to(tl.float32)
    if DECOUPLED:
        p_decayed = p * (1.0 - rate * weight_decay).to(tl.float32)
    else:
        g = g + p * weight_decay.to(tl.float32)
        p_decayed = p
    m = m + (g - m) * (1.0 - beta1).to(tl.float32)
    v = v * beta2.to(tl.float32) + g * g * (1.0 - beta2).to(tl.float32)
    p = p_decayed - step_size * (m / (tl.sqrt(v) / root2 + eps))
    write(param, offsets, count, is_fast, p.to(ELEMENT), ELEMENT)
    write(exp_avg, offsets, count, is_fast, m.to(ELEMENT), ELEMENT)
    write(exp_avg_sq, offsets, count, is_fast, v.to(ELEMENT), ELEMENT)


def adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    owner: Sequence[int],
    grad_scale: Tensor | None,
    update_scale: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """Take one step of AdamW (`decoupled`) or Adam on the modulated gradients."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    check_adamw(*lists, owner, grad_scale, update_scale, lr, beta1, beta2, eps, weight_decay)
    if not params:
        return
    device = params[0].device
    grads = [tables.laid_out_like(grad, param) for grad, param in zip(grads, params, strict=True)]
    launches = _launches((params, grads, exp_avgs, exp_avg_sqs), owner, device)
    torch._foreach_add_(list(steps), 1.0)  # only now: nothing can be refused any more
    counts = torch.stack([step.reshape(()) for step in steps]).double()  # [S]
    counts = tables.to_device(counts, device) if counts.device != device else counts
    sign = -1.0 if maximize else 1.0
    logs = (_log(beta1), _log(beta2))
    settings = _settings((lr, beta1, eps, weight_decay, sign, *logs, beta2), device)
    scales = _scale_arguments(grad_scale, update_scale, settings)
    given = [tensor is not None for tensor in (grad_scale, update_scale)]
    decoupled = decoupled or weight_decay == 0  # 0 times an infinite parameter would be NaN in the gradient
    for dtype, table in launches:
        adamw_kernel[(len(table),)](
            table, counts, *scales, settings, *given, decoupled, ELEMENTS[dtype], CHUNK, **OPTIONS
        )


def _launches(
    lists: Sequence[Sequence[Tensor]], owner: Sequence[int], device: torch.device
) -> list[tuple[torch.dtype, Tensor]]:
    """Return one table per dtype that occurs, without empty ones."""
    groups = tables.entries(lists, owner or [-1] * len(lists[0])).items()
    launches = [
        (dtype, tables.chunk_table(tuple(group), 0, dtype.itemsize, device)) for dtype, group in groups
    ]
    return [(dtype, table) for dtype, table in launches if len(table)]


def _scale_arguments(
    grad_scale: Tensor | None, update_scale: Tensor | None, unused: Tensor
) -> list[Tensor | int]:
    """Return each scale and its stride; `unused` stands in for a scale that is None."""
    arguments: list[Tensor | int] = []
    for scale in (grad_scale, update_scale):
        arguments += [unused, 0] if scale is None else [scale, scale.stride(0)]
    return arguments


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


@tables.kept
def _settings(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return hyper-parameters as a float64 tensor: Triton would pass Python numbers as float32."""
    return tables.to_device(torch.tensor(values, dtype=torch.float64), device)
