"""The extension uses only functions of torch that the oldest supported version, 2.11, has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import cggm_ops

OLDEST = (2, 11)
HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc"
SHIMS = [
    *(HEADERS / "stable" / "c").glob("*.h"),
    *(HEADERS / "inductor" / "aoti_torch" / "c").glob("*.h"),
    *(HEADERS / "inductor" / "aoti_torch" / "generated").glob("*.h"),
]
FUNCTION = re.compile(r"\b((?:aoti_)?torch_\w+)\s*\(")
GUARD = re.compile(r"TORCH_FEATURE_VERSION\s*>=\s*TORCH_VERSION_(\d+)_(\d+)_\d+")


def declared():
    """Return the functions of torch's C interface with the version that added each, from the headers' #if blocks."""
    functions = {}
    for path in SHIMS:
        blocks = []
        text = path.read_text()
        for line in text.splitlines():
            stripped = line.strip()
            if stripped.startswith("#if"):
                guard = GUARD.search(stripped)
                blocks.append((int(guard[1]), int(guard[2])) if guard else (0, 0))
            elif stripped.startswith("#endif"):
                blocks.pop()
            elif not stripped.startswith(("//", "*")):
                for name in FUNCTION.findall(line):
                    version = max(blocks, default=(0, 0))
                    functions[name] = min(version, functions.get(name, version))
        assert not blocks, path
    return functions


def test_headers_tell_versions():
    functions = declared()
    assert functions["aoti_torch_get_data_ptr"] <= OLDEST
    if "torch_library_def_with_tags" in functions:
        assert functions["torch_library_def_with_tags"] == (2, 12)


@pytest.mark.skipif(cggm_ops.build_info() is None, reason="no compiled extension here")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_every_undefined_symbol_is_in_the_oldest_torch():
    from cggm_ops import _C

    check_symbols(_C.__file__)


def check_symbols(library):
    """Fail on symbols that the oldest torch lacks, and on C++ symbols, which have no stable interface."""
    command = ["nm", "-D", "--undefined-only", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    symbols = [line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()]
    functions = declared()
    used = [name for name in symbols if name.startswith(("aoti_torch_", "torch_"))]
    assert len(used) > 20
    unknown = [name for name in used if name not in functions]
    assert not unknown, f"not declared in torch's C interface: {unknown}"
    newer = {name: functions[name] for name in used if functions[name] > OLDEST}
    assert not newer, f"newer than torch {OLDEST}: {newer}"
    mangled = [name for name in symbols if re.match(r"_Z\w*(2at|3c10|5torch|4c10d)", name)]
    assert not mangled, f"C++ symbols of torch: {mangled}"


@pytest.mark.skipif(cggm_ops.build_info() is None, reason="no compiled extension here")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_extension_serves_every_python():
    from cggm_ops import _C

    assert _C.__file__.endswith(".abi3.so")
