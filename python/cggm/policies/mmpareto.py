"""MMPareto (Wei and Hu, ICML 2024, arXiv 2405.17730), at the encoders' parameters or at their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cggm.arguments import check_range

from .roles import Combiner


def pareto_weight(multimodal: Tensor, product: Tensor, unimodal: Tensor) -> Tensor:
    """Weight `w_m` of the multimodal gradient; `w_u = 1 − w_m`.

    With `x = ⟨g_m, g_m⟩`, `y = ⟨g_m, g_u⟩`, `z = ⟨g_u, g_u⟩`: ½ if the two agree (`y > 0`), otherwise the weight of the
    shortest convex combination, which is 0.999 if `y ≥ x`, 0.001 if `y ≥ z`, and `(z − y) / (x + z − 2y)` otherwise.

    Args:
        multimodal: x, 0-dimensional.
        product: y.
        unimodal: z.

    >>> pareto_weight(torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(3.0)).round(decimals=4)
    tensor(0.6667)
    """
    above, below = unimodal - product, multimodal - product
    inside = above / (above + below)
    shortest = inside.masked_fill_(above <= 0, 0.001).masked_fill_(below <= 0, 0.999)
    return shortest.masked_fill_(product > 0, 0.5)


@dataclass(frozen=True)
class MMPareto(Combiner):
    """Combines each encoder's multimodal and unimodal gradient so that a step harms neither loss.

    The weights come from the whole encoder's gradients (`pareto_weight`). Then each tensor's
    `h = 2 w_m g_m + 2 w_u g_u` is scaled up to the norm of `g_m + g_u` if that is larger, and multiplied by γ.
    Parameters outside the encoders get the gradient of the plain sum of losses. (Sections 3.2 and 3.3 of the paper; the
    closed form and the per-tensor norms follow its released script.)

    `loss.backward()` runs two backward passes through the encoders instead of one, and holds two sets of encoder
    gradients until both have finished. With gradient accumulation, each micro-batch is combined separately. Modules
    before an encoder's input get no gradient. Several processes average both gradients, which needs
    `DistributedDataParallel(model, find_unused_parameters=True)`. `FeaturePareto` has neither limit and costs one pass.

    Args:
        gamma: γ, `>= 0`.

    Raises:
        ValueError: a negative factor.

    >>> gram = torch.tensor([[[1.0, -1.0], [-1.0, 3.0]]])                        # g_m = (1, 0), g_u = (-1, √2)
    >>> MMPareto(gamma=1.0).combination_weights(gram).round(decimals=4)
    tensor([[1.6330, 0.8165]])
    """

    gamma: float = 1.5
    combine_at: ClassVar[Literal["features", "parameters"]] = "parameters"

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0.0)

    def combination_weights(self, gram: Tensor) -> Tensor:
        """Weights `[S, M, 2]`, including norm and γ, from dot products `[S, M, 2, 2]`; the axis M is optional."""
        gram = gram.flatten(-2)  # [S, M, 4]
        multimodal, product, _, unimodal = gram.sum(0).unbind(-1)  # [M], of whole encoders
        weight = pareto_weight(multimodal, product, unimodal)
        weights = torch.stack([weight, 1 - weight], -1).mul_(2)  # [M, 2]
        products = (weights.unsqueeze(-1) * weights.unsqueeze(-2)).flatten(-2)  # [M, 4]
        raised = _raise(gram.sum(-1), (gram * products).sum(-1))  # [S, M], of ‖g_m + g_u‖² and ‖h‖²
        return weights * raised.sqrt_().mul_(self.gamma).unsqueeze(-1)


def _raise(wanted: Tensor, present: Tensor) -> Tensor:
    """`max(1, wanted / present)` of squared norms; bounded, because opposite gradients leave only rounding errors."""
    return (wanted / present.clamp_min(torch.finfo(present.dtype).tiny)).clamp_(1, 1e10)


@dataclass(frozen=True)
class FeaturePareto(Combiner):
    """Applies MMPareto's rule to the gradients at an encoder's output: one backward pass instead of two.

    `h = 2 w_m g_m + 2 w_u g_u` is scaled up to the norm of `g_m + g_u` if that is larger, and multiplied by γ. Norms
    and dot products are over the whole batch of features.

    Args:
        gamma: γ, `>= 0`.

    Raises:
        ValueError: a negative factor.

    >>> FeaturePareto(gamma=1.0).combine(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))       # w_m = 0.6
    tensor([0.4472, 0.8944])
    """

    gamma: float = 1.5

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0.0)

    def combine(self, multimodal: Tensor, unimodal: Tensor) -> Tensor:
        """The combined gradient; not finite if one of the two is not."""
        if multimodal.element_size() < 4:  # with loss scaling, squares overflow in half precision
            return self.combine(multimodal.float(), unimodal.float()).to(multimodal.dtype)
        product = (multimodal * unimodal).sum()
        weight = 2 * pareto_weight(vector_norm(multimodal).square(), product, vector_norm(unimodal).square())
        combined = (multimodal * weight).addcmul_(unimodal, 2 - weight)
        raised = _raise(vector_norm(multimodal + unimodal).square(), vector_norm(combined).square()).sqrt()
        return combined * (self.gamma * raised)
