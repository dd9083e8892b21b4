"""What to say where features or gradients that a step needs are missing."""

from __future__ import annotations

from collections.abc import Sequence


def no_features(names: Sequence[str]) -> RuntimeError:
    """The error of `balance()` for encoders that left no features.

    Args:
        names: the modalities.
    """
    return RuntimeError(
        f"balance() found no features of {list(names)}: call it once after each forward pass of the model in which "
        "every encoder runs, with gradients enabled; if no sample has a modality, say so with balance(..., "
        "present={name: False}). If the model did run, its encoder was not seen, because (1) the model calls "
        "encoder.forward(x) or another method, not encoder(x); (2) it runs the encoder under torch.no_grad(), where a "
        "frozen one takes requires_grad_(False) instead; (3) activation checkpointing with use_reentrant=True runs it "
        "without gradients: pass use_reentrant=False; (4) the model was compiled and run before it was wrapped: call "
        "torch.compiler.reset() after wrapping, or wrap first; (5) the encoder was replaced by another module after "
        "wrapping: wrap again"
    )


def no_gradients(backward_ran: bool) -> RuntimeError:
    """The error of a step whose encoders have no gradients.

    Args:
        backward_ran: whether a balanced loss went backward.
    """
    if not backward_ran:
        return RuntimeError(
            "a balanced loss is pending, but the encoders have no gradients: call backward() on what balance() "
            "returned before step()"
        )
    return RuntimeError(
        "the balanced loss went backward, but the encoders have no gradients: zero_grad() came between the two, or the "
        "model detaches the features, as in linear probing, where encoders take requires_grad_(False), or it ran with "
        "other parameters than its own, as in torch.func.functional_call"
    )
