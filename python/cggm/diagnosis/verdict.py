"""The verdict in words, from scores alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

# Chosen on avdigits, avdigits-pca, uci, cub and wiki, each with SGD and Adam. WORTH became part of the rule after
# results of all data sets but scene15 were seen.
#: A modality whose gain over chance is less than this part of the best model's is near chance.
NEAR_CHANCE = 0.15
#: A modality is starved if the joint model's encoder lost more than this part of what it gains over chance alone.
STARVED = 0.1
#: Balancing is worth trying if a fusion of encoders trained alone is better than the joint model by more than this part
#: of the best model's gain over chance.
WORTH = 0.02
#: Modalities are redundant if the best one alone reaches this part of the joint model's gain over chance.
REDUNDANT = 0.98

Kind = Literal["starved", "near chance", "well learnt"]
Overall = Literal["unbalanced", "starved in vain", "one modality", "redundant", "balanced", "nothing learnt"]


class Verdict(NamedTuple):
    """What is the matter with the model and each of its modalities, and the same in words."""

    overall: Overall
    kinds: dict[str, Kind]
    sentence: str
    sentences: dict[str, str]


def judge(
    scores: Mapping[str, Sequence[float]],
    joint: float,
    fused: float,
    *,
    chance: float,
    price: float,
    percent: bool,
) -> Verdict:
    """The verdict.

    Args:
        scores: modality -> score of its encoder trained alone, and of a probe on the joint model's encoder.
        joint: score of the joint model.
        fused: score of a fusion on top of encoders that were trained alone.
        chance: score of the best constant answer.
        price: time of a balanced step in joint steps.
        percent: whether scores are shares, which are written in percent.

    >>> scores = {"audio": (0.88, 0.66), "image": (0.9, 0.9)}
    >>> judge(scores, 0.92, 0.95, chance=0.1, price=1.1, percent=True).sentences["audio"]
    'starved: alone 88.0, inside the joint model 66.0'
    """
    write = (lambda value: f"{100 * value:.1f}") if percent else (lambda value: f"{value:.3g}")
    best = max([joint, fused, *(alone for alone, _ in scores.values())])
    gain = best - chance
    if not gain > 0:
        kinds: dict[str, Kind] = dict.fromkeys(scores, "near chance")
        return Verdict(
            "nothing learnt",
            kinds,
            "neither the joint model nor any modality beats a constant answer: "
            "train longer, or look at the data first",
            dict.fromkeys(scores, "near chance alone"),
        )
    kinds = {}
    sentences = {}
    for name, (alone, inside) in scores.items():
        numbers = f"alone {write(alone)}, inside the joint model {write(inside)}"
        if max(alone, inside) - chance < NEAR_CHANCE * gain:
            kinds[name] = "near chance"
            sentences[name] = f"near chance ({write(chance)}): {numbers}"
        elif alone - inside > STARVED * (alone - chance):
            kinds[name] = "starved"
            sentences[name] = f"starved: {numbers}"
        else:
            kinds[name] = "well learnt"
            sentences[name] = f"well learnt: {numbers}"
    overall, sentence = _overall(
        scores, kinds, sentences, joint - chance, (fused - joint) / gain, chance=chance, price=price
    )
    return Verdict(overall, kinds, sentence, sentences)


def _overall(
    scores: Mapping[str, Sequence[float]],
    kinds: Mapping[str, Kind],
    sentences: Mapping[str, str],
    joint: float,
    to_win: float,
    *,
    chance: float,
    price: float,
) -> tuple[Overall, str]:
    """The verdict on the model; `joint` is its gain over chance, `to_win` what separate encoders add, in gains."""
    starved = "; ".join(f"{name} is {sentences[name]}" for name, kind in kinds.items() if kind == "starved")
    useless = [name for name, kind in kinds.items() if kind == "near chance"]
    useful = [name for name in kinds if name not in useless]
    if len(useful) <= 1:
        carriers = (
            f"{useful[0]} carries the signal; " if useful else "only the modalities together carry signal; "
        )
        return "one modality", f"{carriers}{_list(useless)} near chance alone: balancing has nothing to win"
    if to_win > WORTH:
        found = (
            starved or "none is starved, yet encoders trained alone do better together than the joint model"
        )
        return "unbalanced", f"{found}; balancing is worth trying, expect a price of {price:.1f} joint steps"
    if starved:
        return "starved in vain", (
            f"{starved}; but encoders trained alone do no better together: balancing has little to win"
        )
    best = max(scores, key=lambda name: scores[name][0])
    if scores[best][0] - chance >= REDUNDANT * joint:
        return "redundant", (
            f"{best} alone does as well as all modalities together, and none is starved: balancing has little to win"
        )
    return (
        "balanced",
        "every modality has learnt inside the joint model what it learns alone: the model is balanced",
    )


def _list(names: Sequence[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)} {verb}"
