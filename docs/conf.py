"""Sphinx configuration: `make docs` builds the site with warnings as errors."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
project = "cggm"
author = "the cggm authors"
copyright = "the cggm authors, Apache-2.0"
release = re.search(r'__version__ = "(.+)"', (ROOT / "python/cggm/__init__.py").read_text()).group(1)
version = release

sys.path.insert(0, str(ROOT / "docs"))  # for pictures.py

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
default_role = "code"  # docstrings quote code with single backticks
exclude_patterns = ["_build"]

# The tutorials run while the site is built; a page shows the code and what it printed and drew. One whose file did not
# change does not run again.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("pictures",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "furo"
html_title = f"cggm {release}"
