"""The reader of pickled arrays: it reads what NumPy writes, and nothing in a hostile file runs."""

import pickle
import struct
import sys

import numpy as np
import pytest

from cggm.experiments.papers import files, pickles

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    np.arange(12).reshape(3, 4)[:, ::2],
    np.array([True, False]),
    np.array(3, np.uint16),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_array_of_numbers_is_read(protocol):
    loaded = pickles.load(pickle.dumps({"a": ARRAYS, "again": (ARRAYS[0], "text", 1, None)}, protocol))
    for noted, array in zip(loaded["a"], ARRAYS, strict=True):
        found = noted.array()
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    assert loaded["again"][0] is loaded["a"][0]


def test_names_of_numpy_1_and_text_of_python_2_are_read():
    array = ARRAYS[0]
    state = b"(K\x01K\x02K\x03\x86" + dtype(b"f4") + b"\x89T" + struct.pack("<i", 24) + array.tobytes() + b"t"
    np.testing.assert_array_equal(pickles.load(reconstruct(state)).array(), array)


# hand-written pickles -----------------------------------------------------------------------------------------------


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def data(value):
    return b"B" + struct.pack("<I", len(value)) + value


def dtype(code, state=b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"):
    return b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"\x89\x88\x87R" + state + b"b"


def reconstruct(state, subtype=b"cnumpy\nndarray\n"):
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + subtype
    return head + b"K\x00\x85U\x01b\x87R" + state + b"b."


def array(shape, kind, content, subtype=b"cnumpy\nndarray\n"):
    return reconstruct(b"(K\x01" + shape + kind + b"\x89" + content + b"t", subtype)


def call(module, name, arguments):
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + arguments + b"R."


POINTERS = data(struct.pack("<2Q", 0x41414141, 0x42424242))
TWO = b"K\x02\x85"
STRUCTURE = b"(K\x03U\x01|NU\x01a\x85}U\x01a" + dtype(b"O8") + b"K\x00\x86sK\x08K\x01K\x1bt"
F8 = dtype(b"f8")
HOSTILE = {
    # name -> (pickle, words of the message)
    "ndarray called with object dtype and bytes": (
        call("numpy", "ndarray", TWO + text("O") + POINTERS + b"\x87"),
        "no array",
    ),
    "object dtype by state": (array(TWO, dtype(b"O8"), POINTERS), "dtype 'O8'"),
    "object dtype as NumPy writes it": (pickle.dumps(np.array([1, "a"], dtype=object)), "dtype 'O8'"),
    "object dtype in a frombuffer": (
        call("numpy._core.numeric", "_frombuffer", b"(" + POINTERS + dtype(b"O8") + TWO + text("C") + b"t"),
        "'O8'",
    ),
    "object inside a structure": (array(TWO, dtype(b"V8", STRUCTURE), POINTERS), "plain numbers"),
    "dtype code with fields": (array(TWO, dtype(b"O,O"), POINTERS), "'O,O'"),
    "dtype by a nested call": (
        array(TWO, call("numpy", "dtype", text("O") + b"\x85")[2:-1], POINTERS),
        "plain numbers",
    ),
    "dtype given as a function": (array(TWO, b"cnumpy\ndtype\n", POINTERS), "plain numbers"),
    "subtype that is a dtype": (array(TWO, F8, POINTERS, b"cnumpy\ndtype\n"), "no array"),
    "subtype that is a call": (array(TWO, F8, POINTERS, b"cnumpy\nndarray\n)R"), "no array"),
    "more values than bytes": (array(b"K\x03\x85", F8, POINTERS), "16 bytes for shape"),
    "huge shape": (array(b"J\xff\xff\xff\x7f" * 3 + b"\x87", F8, POINTERS), "16 bytes for shape"),
    "shape that wraps around to 2": (
        array(b"\x8a\x09" + (2**64 + 2).to_bytes(9, "little") + b"\x85", F8, POINTERS),
        "16 bytes for shape",
    ),
    "negative shape": (array(b"J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86", F8, POINTERS), "sizes"),
    "a thousand dimensions": (array(b"(" + b"K\x01" * 1000 + b"t", F8, data(b"12345678")), "sizes"),
    "shape that is text": (array(text("ab"), F8, POINTERS), "sizes"),
    "hostile state on the dtype function": (b"\x80\x02cnumpy\ndtype\n}U\x04typeK\x01sb.", "no array"),
    "hostile state on ndarray": (
        b"\x80\x02cnumpy\nndarray\nN}U\x0c__setstate__cnumpy\ndtype\ns\x86b.",
        "no array",
    ),
    "a dtype whose state is a number": (array(TWO, dtype(b"f8", b"K\x01"), POINTERS), "plain numbers"),
    "f2py run by its import": (
        b"\x80\x02cnumpy.f2py.__main__\ndtype\n.",
        "numpy.f2py.__main__.dtype is not an array",
    ),
    "a submodule of numpy": (call("numpy.testing._private.utils", "ndarray", b")"), "is not an array"),
    "a dotted name": (call("numpy", "ndarray.__class__", b")"), "is not an array"),
    "scalar": (call("numpy.core.multiarray", "scalar", b")"), "is not an array"),
    "eval": (call("builtins", "eval", text("1") + b"\x85"), "builtins.eval is not an array"),
    "eval inside an array's state": (
        array(TWO, F8, call("builtins", "eval", text("1") + b"\x85")[2:-1]),
        "is not an array",
    ),
    "encode into another codec": (
        array(TWO, F8, call("_codecs", "encode", text("a" * 16) + text("zip") + b"\x86")[2:-1]),
        "without bytes",
    ),
    "a nested reduce": (call("numpy", "dtype", b")")[:-1] + b")R)R.", "no array"),
    "a call of a string": (b"\x80\x04" + text("eval") + b")R.", "function"),
    "an instance by INST": (b"\x80\x02(inumpy\nndarray\n.", "INST"),
    "an instance by OBJ": (b"\x80\x02(cnumpy\nndarray\no.", "OBJ"),
    "an instance by NEWOBJ": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "an instance by NEWOBJ_EX": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
    "a registered extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a persistent id": (b"\x80\x02K\x01Q.", "BINPERSID"),
    "an out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "a memo of 2**32 places": (b"\x80\x02K\x01r\xff\xff\xff\xff0.", "POP"),
    "bytes of a terabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.", "1099511627776"),
    "a bytearray of a terabyte": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.", "1099511627776"),
    "a key that takes 2**60 steps to hash": (
        b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
        "string as key",
    ),
    "a shape that takes 2**60 steps to show": (array(b")" + b"q\x00h\x00\x86" * 60, F8, POINTERS), "sizes"),
    "a stack that is empty": (b"\x80\x02R.", "unpack"),
    "a mark that is missing": (b"\x80\x02t.", "fit together"),
    "a memo that is missing": (b"\x80\x02h\x07.", "fit together"),
    "an append to nothing": (b"\x80\x02K\x01a.", "fit together"),
    "an odd number of items": (b"\x80\x02}(K\x01u.", "zip"),
    "an end too early": (b"\x80\x02}", "exhausted"),
    "nothing": (b"", "exhausted"),
    "an instruction that is none": (b"\x80\x02\xff.", "unknown"),
    "text that is not UTF-8": (b"\x80\x04\x8c\x02\xff\xff.", "utf-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_imports_nothing(name, monkeypatch, tmp_path):
    content, words = HOSTILE[name]
    before = set(sys.modules)
    monkeypatch.setattr("builtins.eval", lambda *_: pytest.fail("executed"))
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        files.read_pickle(tmp_path / "x.pkl", "pickle").array()
    assert set(sys.modules) == before
