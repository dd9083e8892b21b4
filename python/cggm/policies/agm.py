"""Adaptive gradient modulation (Li et al., ICCV 2023, arXiv 2308.07686)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from cggm.arguments import check_range, check_whole, check_word
from cggm.tasks.calls import TaskCalls

from .base import CoefficientUpdate, ScaleTarget, ScoreSource, State, all_finite
from .roles import Coefficients

if TYPE_CHECKING:
    from cggm.tasks import Task

_SMALLEST = 1e-8  # lower bound for confidences
_LARGEST = 10.0  # bound on the exponent of the coefficients, so that no single batch dominates


@dataclass(frozen=True)
class AGM(Coefficients):
    """Weights each modality's response to the loss by how far it deviates from its running average.

    Shapley values split the head's output into mono-modal responses `m_i`, using forward passes with some modalities
    zeroed; the responses add up to the output. `s_i` is the mean over the batch of
    `−log max(softmax(m_i)[y], 1e-8)`, `r_i = exp(M/(M−1) (s̄ − s_i))`; the same of the running means `R_i` of `s_i`
    gives `q_i`. The gradient that enters `m_i` from the loss is multiplied by `exp(α (q_i − r_i))` (section 3 of the
    paper; the exponent is clamped to ±10). It works with any fusion whose forward function calls each encoder once.

    The masked passes run in evaluation mode. There are `2^M − 2` of them for up to 4 modalities, and
    at most `2 (M − 1)` for each of the `permutations` sampled orders for more.

    `optimizer.statistics["competition"]` is `s_i` minus the unimodal classifier's loss on the same features: how much
    worse a modality does within the fusion than by itself. (The paper compares with a separately trained encoder,
    which is not available in joint training.)

    Args:
        alpha: α `>= 0`.
        permutations: number of sampled orders for more than 4 modalities, `>= 1`.
        zero: `"features"` zeroes what an encoder puts out, and runs only the fusion again. `"inputs"` zeroes the
            floating-point inputs of the encoder and runs it again, as the authors' script does: what its biases and
            normalization layers make of zeros then counts as the response to nothing.

    Raises:
        ValueError: an argument outside its range; with `zero="inputs"`, an encoder without a floating-point input.

    >>> policy = AGM(1.0)
    >>> state = policy.initial_state(torch.zeros(2))
    >>> policy.balance(torch.tensor([-1.0, -1.0]), state).coefficients
    tensor([1., 1.])
    """

    alpha: float = 1.0
    _: KW_ONLY
    permutations: int = 4  # type: ignore[misc]
    zero: Literal["features", "inputs"] = "features"
    # It scales the responses' gradients of the user's loss, before a combiner acts and without terms added to the loss.
    excludes: ClassVar[tuple[str, ...]] = ("combiner", "objective")
    score_source: ClassVar[ScoreSource] = "responses"
    score_kind: ClassVar[Literal["metric"]] = "metric"

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0.0)
        check_whole("permutations", self.permutations, 1)
        check_word("zero", self.zero, ("features", "inputs"))

    def scale_targets(self, adaptive: bool) -> tuple[ScaleTarget, ...]:
        """Only `"feature"`: the coefficients act where the responses enter the loss."""
        return ("response",)

    def measure(self, task: Task, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Scores `−s_i` `[M]` from the responses."""
        calls = TaskCalls.of(task)
        return torch.stack(calls.confidences(outputs, target, lambda sure: sure.clamp_min(_SMALLEST).log()))

    def initial_state(self, scores: Tensor) -> State:
        """Running means 0, no step taken."""
        return {
            "means": torch.zeros_like(scores),
            "steps": torch.zeros((), dtype=torch.float32, device=scores.device),
        }

    def balance(self, scores: Tensor, state: State) -> CoefficientUpdate:
        """Compute coefficients from `−s_i` and the running means before this step; return the updated means.

        A batch with non-finite scores gets coefficients 1 and does not change the means.
        """
        surprises, means, steps = -scores, state["means"], state["steps"]
        factor = scores.numel() / (scores.numel() - 1)
        ratios = torch.exp(factor * (surprises.mean() - surprises))  # [M], r_i
        usual = torch.exp(factor * (means.mean() - means))  # [M], q_i
        exponents = (self.alpha * (usual - ratios)).clamp(-_LARGEST, _LARGEST)
        finite = all_finite(scores)
        coefficients = torch.where(finite, exponents.exp(), torch.ones_like(exponents))
        counted = means * (steps / (steps + 1)) + surprises / (steps + 1)
        state = {"means": torch.where(finite, counted, means), "steps": steps + finite}
        return CoefficientUpdate(coefficients, coefficients, state)

    def diagnostics(self, scores: Tensor, losses: Tensor) -> Mapping[str, Tensor]:
        """Competition `[M]`: how much worse each modality does within the fusion than by itself."""
        return {"competition": -scores - losses}
