"""Sphinx configuration: `make docs` builds the site with warnings as errors."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
project = "cggm"
author = "the cggm authors"
copyright = "the cggm authors, Apache-2.0"
release = re.search(r'__version__ = "(.+)"', (ROOT / "python/cggm/__init__.py").read_text()).group(1)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
default_role = "code"  # docstrings quote code with single backticks
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"cggm {release}"
