"""Compiles every Triton kernel without a GPU, and prints properties of the machine code as JSON.

This is a program, because a process with Triton's interpreter cannot compile. For each kernel and dtype it prints the
bytes of local memory, and the widths in bits of global loads and stores.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from cggm_ops.triton import modulation, optimizers, tables

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
STEP = {"HAS_GRAD_SCALE": True, "HAS_UPDATE_SCALE": True}
# The types of arguments that are not constants.
TYPES = {
    "table": "*i64",
    "coefficients": "*fp32",
    "grad": "*fp32",
    "cosines": "*fp32",
    "begins": "*i64",
    "grad_scale": "*fp32",
    "update_scale": "*fp32",
    **dict.fromkeys(("partials", "products", "sums", "counts", "settings"), "*fp64"),
    **dict.fromkeys(("stride", "chunks", "grad_stride", "update_stride"), "i32"),
}
# Kernels that work on elements, with their constants.
ELEMENTWISE = [
    (modulation.scale_kernel, {}),
    (modulation.products_kernel, {"MODALITIES": 3}),
    (modulation.backward_kernel, {"MODALITIES": 3}),
    (optimizers.adamw_kernel, {**STEP, "DECOUPLED": True}),
]
SUMS = [
    (modulation.sum_kernel, {}),
    (modulation.cosines_kernel, {"MODALITIES": 3}),
]
ELEMENTS = {"float32": tl.float32, "bfloat16": tl.bfloat16}


def inspect(kernel, constants, arch):
    """Compile one kernel; return its local memory and the widths of its accesses."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(tables.OPTIONS))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [str(CUOBJDUMP), "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "local": sum(int(bytes_) for bytes_ in re.findall(r"(?:STACK|LOCAL):(\d+)", text)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", text)),
        "loads": sorted({int(width or 32) for width in re.findall(r"\bLDG\.E(?:\.(\d+))?\b", text)}),
        "stores": sorted({int(width or 32) for width in re.findall(r"\bSTG\.E(?:\.(\d+))?\b", text)}),
    }


def main(arch):
    """Print a line for each kernel and dtype."""
    for kernel, constants in ELEMENTWISE:
        for name, element in ELEMENTS.items():
            types = {"ELEMENT": element, "CHUNK": tables.CHUNK}
            found = inspect(kernel, {**types, **constants}, arch)
            print(json.dumps({"kernel": kernel.__name__, "dtype": name, **found}), flush=True)
    for kernel, constants in SUMS:
        found = inspect(kernel, {"BLOCK": tables.SUM_BLOCK, **constants}, arch)
        print(json.dumps({"kernel": kernel.__name__, "dtype": None, **found}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
