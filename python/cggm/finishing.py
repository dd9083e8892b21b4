"""Clean-up that an interrupt cannot skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def surely(finish: Callable[[], None]) -> Iterator[None]:
    """Call `finish` after the block, and once more after an error; the error may have interrupted `finish` itself.

    Ctrl-C can come anywhere, in a `finally` block too. `finish` must take up what is left to do, whatever that is.

    >>> done = []
    >>> with surely(lambda: done.append("finished")):
    ...     pass
    >>> done
    ['finished']
    """
    try:
        try:
            yield
        finally:
            finish()
    except BaseException:
        finish()
        raise
