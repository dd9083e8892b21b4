"""Layouts: which axes of an encoder's features hold samples, features and positions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names the axes of features, in the notation of einops.

    `B` is the sample axis and `D` the feature axis; every other name is an axis of positions. `"(B T) D H W"` means
    that the first axis holds T rows per sample, sample by sample; `"(B 3) D H W"` means three rows per sample.

    Args:
        text: the names of the axes.

    Raises:
        ValueError: there is not exactly one `B` and one `D`, a name occurs twice, or a group contains `D` or more than
            two names.

    >>> Layout("(B T) D H").to_positions(torch.zeros(6, 5, 4), samples=2).shape     # three rows, four positions each
    torch.Size([2, 12, 5])
    """

    text: str

    def __post_init__(self) -> None:
        words = re.findall(r"\([^()]*\)|\S+", self.text) if isinstance(self.text, str) else []
        axes = [tuple(word[1:-1].split()) if word.endswith(")") else (word,) for word in words]
        names = [name for axis in axes for name in axis]
        known = names.count("B") == names.count("D") == 1 and len(set(names)) == len(names)
        if (
            not known
            or not all(re.fullmatch(r"\w+", name) for name in names)
            or any(len(axis) != 1 and (len(axis) != 2 or "B" not in axis or "D" in axis) for axis in axes)
        ):
            raise ValueError(
                'layout must name each axis of the features once, the samples "B" and the features "D" among them, as '
                f'in "B D", "B T D", "B D H W" or "(B T) D H W", got {self.text!r}'
            )
        object.__setattr__(self, "_axes", tuple(axes))

    @property
    def samples_axis(self) -> int:
        """The axis that holds the samples, alone or in a group."""
        return next(i for i, axis in enumerate(self._axes) if "B" in axis)

    @property
    def grouped(self) -> bool:
        """Whether that axis holds several rows for each sample."""
        return len(self._axes[self.samples_axis]) == 2

    def samples(self, features: Tensor, name: str) -> int | None:
        """The number of samples in the features; None if a group such as `"(B T)"` leaves it open.

        Raises:
            ValueError: the number of axes or of rows does not match.
        """
        if features.ndim != len(self._axes):
            raise ValueError(
                f'encoders[{name!r}]: layout="{self.text}" names {len(self._axes)} axes, but the features are '
                f"{list(features.shape)}"
            )
        rows = features.shape[self.samples_axis]
        if not self.grouped:
            return rows
        other = next(n for n in self._axes[self.samples_axis] if n != "B")
        return self._divide(features, int(other), name) if other.isdigit() else None

    def _divide(self, features: Tensor, parts: int, name: str) -> int:
        rows = features.shape[self.samples_axis]
        if not parts or rows % parts:
            raise ValueError(
                f'encoders[{name!r}]: layout="{self.text}" cannot divide {rows} rows of features '
                f"{list(features.shape)} by {parts}"
            )
        return rows // parts

    def beside(self, flags: Tensor, features: Tensor, name: str) -> Tensor:
        """Reshape flags of the samples `[B, 1]` so that they broadcast with the features."""
        axis = self.samples_axis
        if self.grouped:
            each = self._divide(features, flags.shape[0], name)
            outer = self._axes[axis][0] == "B"
            flags = flags.repeat_interleave(each, 0) if outer else flags.repeat(each, 1)
        if features.ndim == 2 and axis == 0:
            return flags
        return flags.view([-1 if i == axis else 1 for i in range(features.ndim)])

    def samples_first(self, features: Tensor, samples: int, name: str = "") -> tuple[Tensor, int]:
        """The features with samples first and groups unfolded, and the index of the axis `D` in the result."""
        names = [name for axis in self._axes for name in axis]
        axis = self.samples_axis
        if self.grouped:
            each = self._divide(features, samples, name)
            sizes = [samples, each] if self._axes[axis][0] == "B" else [each, samples]
            features = features.unflatten(axis, sizes)
        if names.index("B"):
            features = features.movedim(names.index("B"), 0)
            names = ["B", *(name for name in names if name != "B")]
        return features, names.index("D")

    def to_positions(self, features: Tensor, samples: int, name: str = "") -> Tensor:
        """The features as `[B, D]`, or as `[B, positions, D]`."""
        features, axis = self.samples_first(features, samples, name)
        features = features.movedim(axis, -1)
        return features if features.ndim == 2 else features.flatten(1, -2)

    def to_map(self, features: Tensor, samples: int, name: str = "") -> Tensor:
        """The features as `[B, D, ...]`."""
        features, axis = self.samples_first(features, samples, name)
        return features.movedim(axis, 1)


def last_layer(encoder: nn.Module) -> tuple[nn.Module, int] | tuple[None, None]:
    """The last layer in an encoder with a known output width, and that width.

    >>> last_layer(nn.Sequential(nn.Linear(64, 32), nn.ReLU()))
    (Linear(in_features=64, out_features=32, bias=True), 32)
    """
    for module in reversed(list(encoder.modules())):
        width = _width(module)
        if width is not None:
            return module, width
    return None, None


def _width(module: nn.Module) -> int | None:
    for attribute in (
        "out_features", "out_channels", "num_features", "num_channels", "embed_dim", "embedding_dim",
    ):  # fmt: skip
        width = getattr(module, attribute, None)
        if isinstance(width, int):
            return width
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    return module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else None


_SEQUENCE_MODULES = (
    nn.RNNBase, nn.MultiheadAttention,
    nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder, nn.TransformerDecoderLayer,
)  # fmt: skip


def layout_of(encoder: nn.Module, takes_states: bool) -> Layout | None:
    """The output layout of one of torch's own sequence modules; None for other modules.

    Args:
        encoder: the module.
        takes_states: whether the features are a recurrent module's last states `[layers, B, D]`.
    """
    if isinstance(encoder, nn.Sequential) and len(encoder):
        encoder = encoder[-1]
    if not isinstance(encoder, _SEQUENCE_MODULES):
        return None
    if isinstance(encoder, nn.RNNBase) and takes_states:
        return Layout("T B D")
    flags = [module.batch_first for module in encoder.modules() if hasattr(module, "batch_first")]
    return Layout("B T D" if all(flags) else "T B D")


def infer_layout(features: Tensor, encoder: nn.Module, width: int | None, name: str) -> Layout:
    """Infer the layout of features if the user gave none.

    Two axes are `"B D"`. With three or more, the feature axis is the one as wide as the encoder's last layer. If two
    axes have that width, the type of that layer decides. In a custom module the layer that is registered last need not
    run last, so that no other axis may be as wide as any layer of it.

    Args:
        features: the features of the first forward pass.
        encoder: the module that computed them.
        width: the features' width, if the user gave it.
        name: the modality, for the error.

    Raises:
        ValueError: the layout is ambiguous.
    """
    if features.ndim <= 2:
        return Layout("B D")
    layer, told = last_layer(encoder)
    sure = width is not None or _is_chain(encoder) or _is_of(encoder, _SAMPLES_FIRST)
    widths = set() if sure else {_width(module) for module in encoder.modules()}
    width = width or told
    convolutional = isinstance(layer, _CHANNELS_FIRST)
    positions = "T" if features.ndim == 3 else "H W" if features.ndim == 4 else "Z H W"
    first, last = Layout(f"B D {positions}"), Layout(f"B {positions} D")
    is_first, is_last = features.shape[1] == width, features.shape[-1] == width
    if features.ndim > 5 or (features.ndim == 3 and _may_be_transposed(features, encoder)):
        pass
    elif is_first != is_last:
        if widths.isdisjoint(features.shape[2:] if is_first else features.shape[1:-1]):
            return first if is_first else last
    elif features.ndim > 3 and convolutional:
        return first
    elif is_first and _is_chain(encoder) and layer is not None:
        return first if convolutional else last
    raise ValueError(
        f"encoders[{name!r}]: the features are {list(features.shape)}, and which axis is what cannot be read off the "
        f'encoder ({type(encoder).__name__}); say it, as in Encoder(..., layout="{last.text}") or '
        f'layout="{first.text}"'
    )


_CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip

#: Packages whose models use samples first, unless one of their layers has `batch_first=False`.
_SAMPLES_FIRST = ("timm", "torch", "torchvision", "transformers")


def _is_chain(encoder: nn.Module) -> bool:
    """Whether an encoder is one of torch's layers or a sequence of them, so that its last layer runs last."""
    return all(_is_of(module, ("torch",)) for module in encoder.modules())


def _is_of(module: nn.Module, packages: tuple[str, ...]) -> bool:
    """Whether a module's class and its base classes come from these packages; sharding adds classes of torch."""
    return all(cls.__module__.split(".")[0] in (*packages, "builtins") for cls in type(module).__mro__)


def _may_be_transposed(features: Tensor, encoder: nn.Module) -> bool:
    """Whether the second axis may hold the samples, because nothing distinguishes them from positions."""
    if not all(getattr(module, "batch_first", True) for module in encoder.modules()):
        return True
    return features.shape[0] == features.shape[1] and not _is_of(encoder, _SAMPLES_FIRST)
