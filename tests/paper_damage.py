"""Ways to damage the files of `paper_files`, each a function of the file's path."""

import gzip
import io
import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
nibabel = pytest.importorskip("nibabel")
soundfile = pytest.importorskip("soundfile")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path):
    path.unlink()
    path.mkdir()


def linked(path):
    """The file or folder moves out of the data folder, and a symbolic link takes its place."""
    outside = next(parent for parent in path.parents if parent.name == "data").parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def row(**changes):
    """Changes to the first entry of a JSON list; None takes the key out."""

    def damage(path):
        rows = json.loads(path.read_text())
        rows[0] = {k: v for k, v in (rows[0] | changes).items() if v is not None}
        path.write_text(json.dumps(rows))

    return damage


def array(part, name, change):
    """A change to an array of MOSI's pickle."""

    def damage(path):
        parts = pickle.loads(path.read_bytes())
        parts[part][name] = change(parts[part][name])
        path.write_bytes(pickle.dumps(parts))

    return damage


def put(value, *place):
    """A change to an array: this value at this place."""

    def change(values):
        values = np.array(values)
        values[place or ...] = value
        return values

    return change


def h5(name, change):
    """A change to a data set of an HDF5 file; of `change(file, values)`, a result that is not None replaces it."""

    def damage(path):
        with h5py.File(path, "r+") as file:
            values = file[name][()]
            del file[name]
            new = change(file, values) if callable(change) else change
            if new is not None:
                file[name] = new

    return damage


def npy(change, **options):
    return lambda path: np.save(path, change(np.load(path)), **options)


def npy_of_shape(shape):
    """A `.npy` file that claims this shape and has no values."""
    head = f"{{'descr':'<f8','fortran_order':False,'shape':{shape}}}".ljust(63) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head.encode()


def external(file, values):
    other = os.path.join(os.path.dirname(file.filename), "..", "outside.h5")
    with h5py.File(other, "w") as out:
        out["secret"] = values
    return other


def external_link(name):
    def change(file, values):
        file[name] = h5py.ExternalLink(external(file, values), "secret")

    return h5(name, change)


def soft_link(name):
    def change(file, values):
        file["elsewhere"] = values
        file[name] = h5py.SoftLink("/elsewhere")

    return h5(name, change)


def virtual(name):
    def change(file, values):
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[...] = h5py.VirtualSource(external(file, values), "secret", values.shape)
        file.create_virtual_dataset(name, layout)

    return h5(name, change)


def raw_elsewhere(name):
    def change(file, values):
        file.create_dataset(name, values.shape, values.dtype, external=[("/etc/passwd", 0, values.nbytes)])

    return h5(name, change)


def vast(name):
    def change(file, values):
        file.create_dataset(name, (4, 2**14, 2**14, 2**14), "f4", chunks=(1, 64, 64, 64))

    return h5(name, change)


def volume(change):
    """A change to a NIfTI volume."""

    def damage(path):
        values = change(nibabel.load(path).get_fdata().astype(np.float32))
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)

    return damage


def vast_chunk(name):
    def change(file, values):
        shape, free = values.shape, (None, None)
        file.create_dataset(name, shape, "f4", maxshape=free, chunks=(1, 2**29), compression="gzip")

    return h5(name, change)


def vast_volume(path):
    """A volume whose header claims 32,767 cubed."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:50] = struct.pack("<5h", 3, 32767, 32767, 32767, 1)
    path.write_bytes(gzip.compress(content))


def wav(rate=16_000, channels=1, kind=1, samples=b"\0\1" * 900):
    block = 2 * channels
    form = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * block & 0xFFFFFFFF, block, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def not_finite_sound(path):
    soundfile.write(path, np.full(900, np.nan), 16_000, subtype="FLOAT")


def long_flac(path):
    """A sound whose header claims five thousand million samples."""
    made = io.BytesIO()
    soundfile.write(made, np.zeros(900), 16_000, format="FLAC")
    content = bytearray(made.getvalue())
    content[21] |= 1
    content[22:26] = b"\x40\0\0\0"
    path.write_bytes(content)


def png(width, height):
    """A PNG that claims this size and has no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"nothing") + chunk(b"IEND", b"")
