"""How a unimodal classifier reads an encoder's features: their layout, and which positions are padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..junctions.hook import Inputs
from ..junctions.layouts import Layout, infer_layout
from .classifier_modules import UnimodalClassifier, UnimodalMapClassifier
from .fusion_classifier import FusionClassifier

if TYPE_CHECKING:
    from .encoder import Encoder


class FeatureReader:
    """Converts one modality's features to the form that its unimodal classifier accepts.

    A default classifier gets `[B, D]`, `[B, positions, D]` or a map `[B, D, ...]`. A module of the user's gets the
    features as they are, or with a layout the samples first and the other axes in their order.

    Args:
        name: the modality.
        encoder: what the user said about it.
        layout: of its features, as far as it is known.
        classifier: the unimodal classifier.

    Raises:
        ValueError: a mask for a classifier that takes none.
    """

    def __init__(
        self, name: str, encoder: Encoder, layout: Layout | Callable | None, classifier: nn.Module
    ) -> None:
        self._name, self._layout, self._mask = name, layout, encoder.mask
        self._width = encoder.classifier if isinstance(encoder.classifier, int) else None
        self._is_map = isinstance(classifier, UnimodalMapClassifier)
        self._is_fusion = isinstance(classifier, FusionClassifier)
        self._is_default = self._is_map or isinstance(classifier, UnimodalClassifier)
        if encoder.mask is not None and "mask" not in inspect.signature(classifier.forward).parameters:
            raise ValueError(
                f"encoders[{name!r}]: mask is for a classifier whose forward() takes `mask`, as the default one for "
                f"sequences does; {type(classifier).__name__} does not"
            )

    @property
    def knows_axes(self) -> bool:
        """Whether the user has said, or the encoder shows, which axis holds the samples."""
        return isinstance(self._layout, Layout)

    def samples(self, features: Tensor) -> int | None:
        """The number of samples in the features; None if only another modality or the target determines it."""
        if isinstance(self._layout, Layout):
            return self._layout.samples(features, self._name)
        return None if callable(self._layout) or not features.ndim else features.shape[0]

    def read(
        self, features: Tensor, inputs: Inputs | None, samples: int, modules: Sequence[nn.Module]
    ) -> tuple[Tensor, Tensor | None]:
        """The features as the classifier takes them, and the mask `[B, positions]` or None.

        Args:
            features: as the encoder put them out.
            inputs: what the encoder took, where layout or mask want it.
            samples: how many there are.
            modules: that the encoder is made of.

        Raises:
            ValueError: a layout that does not fit, or that cannot be read off the encoder; a mask of another shape.
        """
        if self._is_fusion:
            return features, None  # the model takes them as the encoder put them out
        layout = self._layout
        if layout is None and self._is_default:
            layout = self._layout = infer_layout(features, modules[-1], self._width, self._name)
        if callable(layout):
            features = self._call(layout, features, inputs)
        elif layout is not None:
            layout.samples(features, self._name)
            if not self._is_default:
                features, _ = layout.samples_first(features, samples, self._name)
            elif self._is_map:
                features = layout.to_map(features, samples, self._name)
            else:
                features = layout.to_positions(features, samples, self._name)
        return features, self._find_mask(features, inputs, modules[0])

    def _call(self, layout: Callable, features: Tensor, inputs: Inputs) -> Tensor:
        features = layout(features, *inputs[0], **inputs[1])
        if not isinstance(features, Tensor) or (self._is_default and not self._is_map and features.ndim != 2):
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"encoders[{self._name!r}]: layout is a function, and must return features [B, D], got {found}"
            )
        return features

    def _find_mask(self, features: Tensor, inputs: Inputs | None, module: nn.Module) -> Tensor | None:
        if self._mask is None:
            return None
        arguments, keywords = inputs
        if callable(self._mask):
            mask = self._mask(*arguments, **keywords)
        else:
            signature = inspect.signature(module.forward)
            named = {**signature.bind_partial(*arguments, **keywords).arguments, **keywords}
            if self._mask not in (*signature.parameters, *named):
                raise ValueError(
                    f"encoders[{self._name!r}]: mask={self._mask!r} is no input of the encoder, which takes "
                    f"{list(signature.parameters)}"
                )
            mask = named.get(self._mask)
        if mask is None:
            return None
        if features.ndim < 3 or mask.shape != features.shape[:2]:
            raise ValueError(
                f"encoders[{self._name!r}]: mask must be [B, positions] = {list(features.shape[:2])} beside the "
                f"features {list(features.shape)} as the classifier reads them, got {list(mask.shape)}"
            )
        return mask.to(features.device).bool()
