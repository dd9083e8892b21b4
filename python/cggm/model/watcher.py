"""What the parts of the wrapper that watch the model's forward passes have in common."""

from __future__ import annotations

from typing import Any

import torch

from ..torch_private import recomputing


class Watcher:
    """Keeps what hooks see in the training loop's forward passes.

    Without a wrapper, in a copy of the model alone or after the wrapper's end, it keeps nothing: `owned` is False then.
    """

    owned = True

    @property
    def watching(self) -> bool:
        """Whether this forward pass is one to keep."""
        return self.owned and torch.is_grad_enabled() and not recomputing()


def autocast_state(kind: str) -> dict[str, Any]:
    """The arguments that make `torch.autocast` what it is now on devices of this kind."""
    return {
        "device_type": kind,
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
    }
