"""csrc <- cggm_ops <- python/cggm <- tests, benchmarks: who may import whom, read from the imports themselves."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Where a layer may import from, beside the standard library and itself.
ALLOWED = {
    "cggm_ops": {"torch", "triton"},
    "python/cggm": {"torch", "cggm_ops"},
}
# Folders and files whose dependencies come with an extra.
EXTRAS = {
    "python/cggm/experiments": {"numpy", "sklearn", "matplotlib", "rich", "scipy", "threadpoolctl", "tyro"},
    "python/cggm/experiments/papers": {"h5py", "nibabel", "PIL", "soundfile", "transformers"},
    "python/cggm/cli.py": {"tyro"},
    "python/cggm/recorder.py": {"matplotlib", "pandas"},
    "python/cggm/diagnosis": {"matplotlib", "rich"},
    "python/cggm/model/inspection.py": {"rich"},
    "python/cggm/integrations": {"accelerate", "lightning", "rich", "transformers"},
}
# The rooms of python/cggm from the ground up: a room imports from those before it and from itself.
ROOMS = (
    "arguments",
    "constants",
    "user_warning",
    "deprecated",
    "finishing",
    "torch_private",
    "tasks",
    "policies",
    "distributed",
    "junctions",
    "model",
    "optim",
)
ABOVE = (
    "optimizer",
    "recorder",
    "diagnosis",
    "integrations",
    "checkpoint",
    "__init__",
    "experiments",
    "cli",
    "__main__",
)
# The only rooms that launch kernels.
LAUNCHING = {"distributed", "junctions", "model", "optim", "experiments", "cli"}


def imports(path):
    """Dotted names that a file imports anywhere in it, relative ones made absolute."""
    package = path.relative_to(ROOT / "python").parts[:-1] if ROOT / "python" in path.parents else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below(layer):
    own = Path(layer).name
    for path in sorted((ROOT / layer).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        extra = set().union(*(names for place, names in EXTRAS.items() if name.startswith(place)))
        foreign = (
            {i for i in packages(path) if i not in sys.stdlib_module_names} - {own} - ALLOWED[layer] - extra
        )
        assert not foreign, f"{name} imports {sorted(foreign)}"


def room_of(path):
    return path.relative_to(ROOT / "python/cggm").with_suffix("").parts[0]


def test_a_room_imports_only_from_the_rooms_below_it():
    order = {room: floor for floor, room in enumerate(ROOMS + ABOVE)}
    for path in sorted((ROOT / "python/cggm").rglob("*.py")):
        room = room_of(path)
        if room in ABOVE:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "cggm" or is_for_types_only(path, name):
                continue
            assert order[parts[1]] <= order[room], f"{path.name} in {room} imports {name}"


def is_for_types_only(path, name):
    """Whether an import stands below `if TYPE_CHECKING` or inside a function, and so makes no circle."""
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return not any(alias.name == name.split(".")[-1] for node in top for alias in node.names)


def test_only_the_optimizers_side_launches_kernels():
    users = {room_of(p) for p in (ROOT / "python/cggm").rglob("*.py") if "cggm_ops" in packages(p)}
    assert users <= LAUNCHING


def test_private_names_of_torch_stand_in_one_file():
    allowed = {"torch_private.py"}
    for path in sorted((ROOT / "python/cggm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            private = (
                isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[1:2].isalpha()
            )
            if private and path.name not in allowed:
                owner = ast.unparse(node.value)
                assert not owner.startswith("torch"), f"{path.name}: {owner}.{node.attr}"


def test_csrc_knows_no_modality_and_no_model():
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            text = path.read_text().lower()
            assert not [
                word for word in ("audio", "cggm_policy", "encoder_", "python/cggm") if word in text
            ], path
