"""Splits the output of a linear head on concatenated features into each modality's share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .watcher import Watcher


def split_head(features: Sequence[Tensor], head: nn.Module) -> list[Tensor]:
    """Each modality's share of the output of a linear head on concatenated features.

    `o_i = z_i W_iᵀ + b / M`, where `W_i` are the columns of the head's weight that multiply modality i's features.

    Args:
        features: M tensors `[B, width_i]`, in the order in which the model concatenates them.
        head: the fusion's output layer, an `nn.Linear` of `Σ width_i` inputs.

    Returns:
        M tensors `[B, C]`, outside autograd, that add up to the head's output.

    Raises:
        ValueError: a head of another kind or width.

    >>> import torch
    >>> head = nn.Linear(5, 3)
    >>> one, other = torch.randn(4, 2), torch.randn(4, 3)
    >>> bool(torch.allclose(sum(split_head([one, other], head)), head(torch.cat([one, other], 1)), atol=1e-5))
    True
    """
    widths = [x.shape[-1] for x in features]
    if (
        not isinstance(head, nn.Linear)
        or sum(widths) != head.in_features
        or any(x.ndim != 2 for x in features)
    ):
        raise ValueError(
            f"the head cannot be split: it must be an nn.Linear on the concatenated features {widths}, found "
            f"{head} on features {[list(x.shape) for x in features]}; with any other fusion let the unimodal "
            "classifiers tell the confidences, OGMGE(split_head=False)"
        )
    share = None if head.bias is None else head.bias.detach() / len(features)
    columns = head.weight.detach().split(widths, 1)
    return [
        nn.functional.linear(x.detach().to(w.dtype), w, share) for x, w in zip(features, columns, strict=True)
    ]


class HeadSplit(Watcher):
    """Splits the model's head, where autograd's graph shows that it takes the concatenated features.

    Args:
        model: the user's model, unwrapped.
        head_path: name of its output layer.
    """

    def __init__(self, model: nn.Module, head_path: str) -> None:
        self._model, self._head_path = model, head_path
        self._handle: Any = None
        self._input: Tensor | None = None

    def attach(self) -> None:
        """Record the head's input in every forward pass."""
        head = self._model.get_submodule(self._head_path)
        self._handle = head.register_forward_pre_hook(self._keep_input)

    def detach(self) -> None:
        """Undo `attach`."""
        self.forget()
        self._handle.remove()

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        self._input = None

    def split(self, features: Sequence[Tensor]) -> list[Tensor]:
        """As `split_head`.

        Args:
            features: M tensors with their graphs, as the encoders' hooks captured them.

        Raises:
            ValueError: a head of another kind, or one that takes something else than the concatenated features.
        """
        outputs = split_head(features, self._model.get_submodule(self._head_path))
        if self._input is not None and not _is_concatenation(self._input, features):
            raise ValueError(
                "the head cannot be split: it does not take the features as they are, concatenated in the order of "
                "encoders; let the unimodal classifiers tell the confidences, OGMGE(split_head=False)"
            )
        return outputs

    def _keep_input(self, module: nn.Module, arguments: tuple) -> None:
        if self.watching and arguments:
            self._input = arguments[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_input": None, "owned": False}


def _is_concatenation(joined: Tensor, features: Sequence[Tensor]) -> bool:
    """Whether autograd made `joined` by `torch.cat` of the features: no value is read, so no device is waited for."""
    node = joined.grad_fn
    if node is None or "CatBackward" not in node.name() or len(node.next_functions) != len(features):
        return False
    return all(_comes_from(before, x) for (before, _), x in zip(node.next_functions, features, strict=True))


def _comes_from(node: Any, features: Tensor) -> bool:
    """Whether a node of the graph hands on the features, or a copy without what modality dropout has taken out."""
    own = features.grad_fn
    copied = node is not None and node.name() in ("CloneBackward0", "MaskedFillBackward0")
    return node is own or (copied and node.next_functions[0][0] is own)
