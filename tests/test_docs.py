"""The code blocks of README, CONTRIBUTING and the documentation run, and what they name exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}


def _blocks(language, name):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [name for name in TEXTS if _blocks("python", name)])
def test_the_code_blocks_of_a_page_run_in_their_order(name, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(_blocks("python", name)))
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:cggm", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


COMMANDS = sorted({line for name in TEXTS for block in _blocks("bash", name) for line in block.splitlines()})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("cggm ", "python -m "))])
def test_a_command_knows_the_options_that_a_page_shows(command):
    words = shlex.split(command.split("#")[0])
    known = ["-m", "cggm", words[1]] if words[0] == "cggm" else words[1:3]
    if known[-1] == "info":
        return
    shown = subprocess.run(
        [sys.executable, *known, "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    options = [word for word in words if word.startswith("--")]
    assert options or words[0] == "cggm"
    assert all(option in shown for option in options), shown


TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", "".join(TEXTS.values())))))
def test_a_test_that_a_page_names_is_there(name):
    assert any(f"def {name}(" in text for text in TESTS.values())


@pytest.mark.parametrize("name", sorted(set(re.findall(r"examples/\w+\.py", "".join(TEXTS.values())))))
def test_an_example_that_a_page_names_is_run_by_a_test(name):
    assert (ROOT / name).is_file()
    assert any(Path(name).stem in text for path, text in TESTS.items() if path != Path(__file__))
