"""Encoders made of several modules: whether the list is in order, and whether the fusion sees the last one only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..junctions.selectors import floating_tensors
from ..user_warning import warn_user
from .encoders import EncoderSet
from .lookup import reached_nodes
from .watcher import Watcher


class ListedModules(Watcher):
    """Watches, until the first balanced loss, the modules of encoders that are given as a list.

    Everything is done at the last module's output, so nothing may reach the loss past that.

    Args:
        encoders: the model's encoders.
        masked: whether scores come from a model whose encoders' outputs are masked.
    """

    def __init__(self, encoders: EncoderSet, masked: bool) -> None:
        self._encoders, self._masked = encoders, masked
        self._handles: list[Any] = []
        self._unchecked = {name for name, paths in encoders.paths.items() if len(paths) > 1}
        self._unseen: set[str] = set()  # of those, which ran in a compiled pass
        self.forget()

    def attach(self) -> None:
        """Watch the modules' outputs, as they are before anything is done to them."""
        for name, modules in zip(self._encoders.names, self._encoders.parts(), strict=True):
            if name in self._unchecked:
                for path, module in zip(self._encoders.paths[name], modules, strict=True):
                    for called in _called(module):
                        hook = _NoteOutput(self, name, path)
                        self._handles.append(called.register_forward_hook(hook, prepend=True))

    def detach(self) -> None:
        """Undo `attach`."""
        self.forget()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self) -> None:
        """Drop what has been kept of the last forward pass."""
        # modality -> module -> the autograd nodes of its outputs, in the order of the first calls
        self._nodes: dict[str, dict[str, set[Any]]] = {}

    def note(self, name: str, path: str, output: Any) -> None:
        """Note that a module of the encoder `name` has run."""
        if not self.watching or name not in self._unchecked:
            return
        if torch.compiler.is_compiling():
            self._unseen.add(name)
            return
        nodes = self._nodes.setdefault(name, {}).setdefault(path, set())
        nodes.update(x.grad_fn for _, x in floating_tensors(output) if x.grad_fn is not None)

    def check(self, loss: Tensor) -> None:
        """Once per encoder, before its first balanced loss goes backward.

        Raises:
            ValueError: the first or the last module of a list did not run first or last.
            RuntimeError: the loss depends on what an inner module put out by another way than through the last module.
        """
        if not self._unchecked:
            return
        for name in self._unseen & self._unchecked - self._nodes.keys():
            self._unseen.discard(name)
            warn_user(
                f"encoders[{name!r}] is a list of modules, and in a compiled model the wrapper cannot see whether the "
                "model uses outputs of any but the last one: run optimizer.explain() or one step before torch.compile"
            )
        for name, nodes in self._nodes.items():
            ran = list(nodes)
            listed = [path for path in self._encoders.paths[name] if path in nodes]
            if (ran[0], ran[-1]) != (listed[0], listed[-1]):
                raise ValueError(
                    f"encoders[{name!r}]: its modules {listed} ran in another order: list them as they ran, {ran}, the "
                    "one that puts out the features last"
                )
            self._check_ways(name, nodes, loss)
        self._unchecked -= self._nodes.keys()
        if not self._unchecked:
            self.detach()

    def _check_ways(self, name: str, nodes: dict[str, set[Any]], loss: Tensor) -> None:
        hook = self._encoders.hooks[self._encoders.names.index(name)]
        past_all = not (hook.junction.acts or hook.mask is not None or hook.keeps_output or self._masked)
        if past_all:  # nothing is done at the last module's output that another output would lack
            return
        ends = nodes.get(self._encoders.paths[name][-1], set())
        found = reached_nodes(loss, set().union(*nodes.values())) - ends
        past = [path for path, own in nodes.items() if own & found]
        if past:
            raise RuntimeError(
                f"encoders[{name!r}]: the model uses what {past} put out, and not only through "
                f"{self._encoders.paths[name][-1]!r}, as with a skip connection: the policy would not reach that. Put "
                "the modules into one that returns all that the fusion uses, and name it as the encoder"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_nodes": {}}  # a graph can be neither copied nor pickled


class _NoteOutput:
    """Forward hook on one module; an object, because a model with hooks that are functions cannot be pickled."""

    def __init__(self, owner: ListedModules, name: str, path: str) -> None:
        self._owner, self._name, self._path = owner, name, path

    @property
    def owned(self) -> bool:
        """Whether there is a wrapper; without one the hook can be removed."""
        return self._owner.owned

    def __call__(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        self._owner.note(self._name, self._path, output)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or what is in it where it is a container that is never called itself."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for child in module.children():
            yield from _called(child)
    else:
        yield module
