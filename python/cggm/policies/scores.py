"""Where the modalities' scores come from: unimodal classifiers, the model with masked inputs, or retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from cggm.arguments import check_range, check_whole

from .base import Policy
from .default import default_policy


@dataclass(frozen=True, kw_only=True)
class ClassifierScores:
    """A light classifier per modality is trained beside the model, and its output is scored. The default.

    Args:
        lr: learning rate of the classifiers, `>= 0`; None for that of the head's parameter group.

    Raises:
        ValueError: a negative or infinite rate.
    """

    lr: float | None = None
    every: ClassVar[int] = 1
    classifiers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lr is not None:
            check_range("lr", self.lr, 0.0)


@dataclass(frozen=True, kw_only=True)
class MaskedScores:
    """A modality's score is that of the model itself while all other modalities' features are masked, set to `1e-6`.

    Works where no unimodal classifier can exist, for any output and loss, and adds no parameters. The model runs M
    times more in every k-th step, without its encoders: they put out what they put out in the training loop's forward
    pass, or `1e-6`. It runs without gradients, in evaluation mode (a model that has a loss only in training mode cannot
    be scored this way), under the forward pass's autocast. The random number generators and the statistics of
    batch norm stay as they were.

    What is scored: the `task` of the wrapper on the model's output (a tensor, or its `logits`) and the target. Without
    a task, it is the model's own loss where its output has one (`loss`, as in transformers with labels in the
    inputs), and else a classification. A task may also be a plain function of output and target that returns a loss.

    A contrastive loss needs both modalities of a pair, and masked scores say nothing there: see `RetrievalScores`.

    Between two measurements the last scores stand; a policy that compares them with the step before, as CGGM does,
    keeps its coefficients. The first step after loading a checkpoint measures.

    Args:
        every: steps from one measurement to the next, a whole number `>= 1`.

    Raises:
        ValueError: another number.

    >>> MaskedScores(every=1)
    MaskedScores(every=1)
    """

    every: int = 10
    classifiers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("every", self.every, 1)


@dataclass(frozen=True, kw_only=True)
class RetrievalScores:
    """For contrastive training, where there are no classes: how well a modality finds its partners in the batch.

    Modality i's score compares each of its embeddings, as a query, with the batch's embeddings of another modality:
    `softmax_b(⟨z_i[a], z_j[b]⟩ / τ)` of embeddings of length 1, where `b = a` is the truth; mean over `j ≠ i`. This is
    the modality's own row of the contrastive loss, so it needs no target, no classifier and no further forward pass.
    Partners are sought among the samples of one process.

    A modality whose embeddings are all alike finds the same partner for every query, and falls behind. The scores of
    two modalities are otherwise close together: both depend on both encoders. Coefficients are what can be balanced
    with them (CGGM, OGMGE, MLB, SMP). A unimodal loss would be the contrastive loss again, and a dropped modality
    leaves a sample without its pair, so combiners and dropout are refused.

    Args:
        temperature: τ, `>= 1e-4`; CLIP starts at 0.07.

    Raises:
        ValueError: a temperature outside its range.
    """

    temperature: float = 0.07
    every: ClassVar[int] = 1
    classifiers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 1e-4)


Scores: TypeAlias = ClassifierScores | MaskedScores | RetrievalScores
CLASSIFIERS = ClassifierScores()

_NAMED = {"classifiers": ClassifierScores, "masked": MaskedScores, "retrieval": RetrievalScores}


def find_scores(scores: str | Scores) -> Scores:
    """Convert the user's value: `"classifiers"`, `"masked"`, `"retrieval"`, or an object of these classes.

    Raises:
        ValueError: another name.
        TypeError: neither a name nor such an object.

    >>> find_scores("masked")
    MaskedScores(every=10)
    """
    if isinstance(scores, str):
        if scores not in _NAMED:
            raise ValueError(f"scores must be one of {list(_NAMED)}, got {scores!r}")
        return _NAMED[scores]()
    if not isinstance(scores, Scores):
        kinds = ", ".join(kind.__name__ for kind in _NAMED.values())
        raise TypeError(f"scores must be one of {list(_NAMED)}, or an object of {kinds}, got {scores!r}")
    return scores


def check_scores(policy: Policy, scores: Scores) -> None:
    """Reject a policy that needs the unimodal classifiers where there are none.

    Raises:
        ValueError: the policy uses unimodal losses, classifier gradients, or scores of its own.
    """
    if scores.classifiers:
        return
    kind = type(scores).__name__
    coefficients = policy.coefficients
    needs = None
    if policy.combiner is not None:
        needs = policy.combiner, "combines the multimodal gradient with that of unimodal losses"
    elif coefficients is not None and coefficients.weighs_unimodal:
        needs = coefficients, "weighs unimodal losses"
    elif coefficients is not None and coefficients.turns_head:
        needs = coefficients, "turns the head's gradient towards the classifiers' (lam > 0; lam=0 does not)"
    if needs is not None:
        default = ", which is the default," if policy == default_policy() else ""
        raise ValueError(
            f"policy: {type(needs[0]).__name__}(){default} {needs[1]}, which need unimodal classifiers, and "
            f"scores={kind}() has none: pass a policy of coefficients, as policy=CGGM(), OGMGE(), MLB() or SMP(...), "
            'or keep scores="classifiers"'
        )
    for role in policy.roles:
        if role.score_source != "classifiers":
            raise ValueError(
                f"policy: {type(role).__name__}() takes its scores from the head's output, not from scores={kind}(): "
                "leave scores out, or pass another policy, as policy=CGGM()"
            )
    if isinstance(scores, RetrievalScores):
        for role in (policy.dropout, policy.objective):
            if role is not None:
                raise ValueError(
                    f"policy: {type(role).__name__}() does not work with contrastive training: a sample that loses a "
                    "modality has no pair, and there is no head; pass a policy of coefficients alone, as policy=CGGM()"
                )
