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
    "python/cggm/recorder.py": {"matplotlib"},
    "python/cggm/integrations": {"accelerate", "lightning", "transformers"},
}


def imports(path):
    """Top-level names that a file imports anywhere in it, relative imports left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below(layer):
    own = Path(layer).name
    for path in sorted((ROOT / layer).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        extra = set().union(*(names for place, names in EXTRAS.items() if name.startswith(place)))
        foreign = (
            {i for i in imports(path) if i not in sys.stdlib_module_names} - {own} - ALLOWED[layer] - extra
        )
        assert not foreign, f"{name} imports {sorted(foreign)}"


def test_only_the_optimizers_side_knows_the_operators():
    users = {p.name for p in (ROOT / "python/cggm").rglob("*.py") if "cggm_ops" in set(imports(p))}
    assert users <= {
        "application.py",
        "direction.py",
        "evaluation.py",
        "parameter_junction.py",
        "cli.py",
        "folded.py",
        "rules.py",
        "stepping.py",
        "flat.py",
        "distributed.py",
        "runner.py",
        "report.py",
    }
    assert not [p for p in (ROOT / "python/cggm/policies").rglob("*.py") if "cggm_ops" in set(imports(p))]


def test_csrc_knows_no_modality_and_no_model():
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            text = path.read_text().lower()
            assert not [
                word for word in ("audio", "cggm_policy", "encoder_", "python/cggm") if word in text
            ], path
