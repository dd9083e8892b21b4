"""Former names that still work for one version, with a DeprecationWarning."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from .user_warning import warn_user

P = ParamSpec("P")


def warn_renamed(former: str, now: str) -> None:
    """Say once per place in the user's code that `former` is now called `now`."""
    warn_user(f"{former} is deprecated and goes in version 0.3: use {now}", DeprecationWarning)


def renamed_argument(former: str, now: str) -> Callable[[type], type]:
    """Class decorator: the constructor's argument `former` is handed on as `now`."""

    def decorate(cls: type) -> type:
        init = cls.__init__

        @functools.wraps(init)
        def accepting(self: Any, *arguments: Any, **named: Any) -> None:
            if former in named:
                warn_renamed(f"{cls.__name__}({former}=...)", f"{now}=...")
                named[now] = named.pop(former)
            init(self, *arguments, **named)

        cls.__init__ = accepting  # type: ignore[misc]
        return cls

    return decorate


def former_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Let the wrapper's constructor take `classifiers`, `classifier_lr` and `flatten`, which have other places now."""

    @functools.wraps(init)
    def accepting(self: Any, *arguments: Any, **named: Any) -> None:
        classifiers, flatten = named.pop("classifiers", None), named.pop("flatten", False)
        if classifiers is not None:
            warn_renamed("classifiers=...", "encoders={name: Encoder(..., classifier=...)}")
            named["encoders"] = _with_classifiers(named["encoders"], classifiers)
        if "classifier_lr" in named:
            warn_renamed("classifier_lr=...", "scores=ClassifierScores(lr=...)")
            _add_rate(named, named.pop("classifier_lr"))
        init(self, *arguments, **named)
        if flatten:
            warn_renamed("flatten=True", "optimizer.flatten_gradients()")
            try:
                self.flatten_gradients()
            except BaseException:
                self.detach()
                raise

    return accepting


def _add_rate(named: dict[str, Any], lr: float | None) -> None:
    from .policies.scores import ClassifierScores

    if lr is None:
        return
    if "scores" in named:
        raise ValueError("classifier_lr is the former name of ClassifierScores(lr=...): pass scores alone")
    named["scores"] = ClassifierScores(lr=lr)


def _with_classifiers(encoders: Any, classifiers: Any) -> dict[str, Any]:
    from .model.encoder import read_encoders

    read = read_encoders(encoders)
    if isinstance(classifiers, str):
        classifiers = dict.fromkeys(read, classifiers)
    unknown = [name for name in classifiers if name not in read]
    if unknown:
        raise ValueError(f"classifiers names {unknown}, but the modalities are {list(read)}")
    return {name: dataclasses.replace(e, classifier=classifiers.get(name)) for name, e in read.items()}
