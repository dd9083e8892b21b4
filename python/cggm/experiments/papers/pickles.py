"""Reading NumPy arrays out of a pickle from the internet without running anything that the file asks for.

Python's unpickler calls what a file names, and NumPy's own functions are not safe to call: `ndarray(shape, "O", data)`
takes the file's bytes for pointers. So this module never calls either. It follows the instructions that writers of
plain arrays use, refuses all others, and only notes down which NumPy function the file names. `Noted.array` then
builds an array of numbers from the note, after checking dtype, shape and number of bytes.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What a pickle of arrays names, protocols 2 to 5, NumPy 1 and 2; everything else is refused.
NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "_frombuffer",
    ("numpy._core.numeric", "_frombuffer"): "_frombuffer",
    ("_codecs", "encode"): "encode",
}
DIMENSIONS = 32
_NUMBER = re.compile("b1|[iu][1248]|f[248]")  # no object, no structure, no text
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_NEW = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False, repr=False)  # shown, nested notes could take for ever
class Noted:
    """One of `NAMES`, and what the file would have it called with and set to; nothing has been called.

    Args:
        name: the value in `NAMES`.
        arguments: of the call, None if the file only names the function.
        state: what the file sets on the result, None if nothing.
    """

    name: str
    arguments: tuple[Any, ...] | None = None
    state: Any = None

    def array(self) -> NDArray:
        """The array, read-only, if this is one of numbers.

        Raises:
            ValueError: it is something else, or dtype, shape and number of bytes do not fit together.
        """
        match self:
            case Noted("_reconstruct", (Noted("ndarray", None), *_), (_, shape, dtype, fortran, data)):
                order = "F" if fortran else "C"
            case Noted("_frombuffer", (data, dtype, shape, "C" | "F" as order), None):
                pass
            case _:
                raise ValueError(f"a call of {self.name} that makes no array")
        kind, content = _dtype(dtype), _bytes(data)
        whole = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
        if not whole or len(shape) > DIMENSIONS:
            raise ValueError(f"an array whose shape is no tuple of at most {DIMENSIONS} sizes")
        if math.prod(shape) * kind.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes for shape {shape} of {kind}")
        return np.ndarray(shape, kind, content, order=order)


def _dtype(noted: object) -> np.dtype:
    match noted:
        case Noted("dtype", (str(code), *_), (_, str(order), None, None, None, *_)) if order in set("<>|="):
            if _NUMBER.fullmatch(code):
                return np.dtype(order + code)
            raise ValueError(f"an array of dtype {code[:20]!r}")
    raise ValueError("an array without a dtype of plain numbers")


def _bytes(data: object) -> bytes | bytearray:
    match data:
        case bytes() | bytearray():
            return data
        case str():  # Python 2's
            return data.encode("latin1")
        case Noted("encode", (str(text), "latin1"), None):  # protocol 2
            return text.encode("latin1")
    raise ValueError("an array without bytes")


def load(content: bytes) -> Any:
    """What the pickle holds: dictionaries, lists, tuples, numbers, strings, and a `Noted` in place of each array.

    Time and memory are proportional to the file: keys must be strings, so no nested tuple is hashed, and an array that
    appears twice is held once.

    Args:
        content: of the file.

    Raises:
        ValueError: it ends too early, names something outside `NAMES`, or does what no pickle of arrays does.

    >>> import pickle
    >>> load(pickle.dumps({"labels": np.arange(3.0)}))["labels"].array()
    array([0., 1., 2.])
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            name = opcode.name
            if name in _VALUES:
                stack.append(argument)
            elif name in _NEW:
                stack.append(_NEW[name]())
            elif name == "MARK":
                marks.append(len(stack))
            elif name in _TUPLES:
                stack.append(tuple(take(len(stack) - _TUPLES[name])))
            elif name == "TUPLE":
                stack.append(tuple(take(marks.pop())))
            elif name in ("APPEND", "APPENDS"):
                items = take(len(stack) - 1 if name == "APPEND" else marks.pop())
                _expect(stack[-1], list, "a list").extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = take(len(stack) - 2 if name == "SETITEM" else marks.pop())
                target = _expect(stack[-1], dict, "a dictionary")
                for key, value in zip(items[::2], items[1::2], strict=True):
                    target[_expect(key, str, "a string as key")] = value
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                pair = argument.split(" ") if name == "GLOBAL" else take(len(stack) - 2)
                full = ".".join(_expect(part, str, "a name") for part in pair)
                if tuple(pair) not in NAMES:
                    raise ValueError(f"{full[:80]} is not an array")
                stack.append(Noted(NAMES[tuple(pair)]))
            elif name == "REDUCE":
                function, arguments = take(len(stack) - 2)
                function = _expect(function, Noted, "a function to call")
                stack.append(Noted(function.name, _expect(arguments, tuple, "arguments")))
            elif name == "BUILD":
                (state,) = take(len(stack) - 1)
                _expect(stack[-1], Noted, "an array").state = state
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"the instruction {name}, which no pickle of arrays (protocols 2 to 5) uses")
    except (IndexError, KeyError) as error:
        raise ValueError("instructions that do not fit together") from error
    if len(stack) != 1:
        raise ValueError("instructions that do not fit together")
    return stack[0]


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where {what} belongs")
    return value
