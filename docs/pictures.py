"""Takes the PNG files that a tutorial wrote into its page."""

import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst


def take(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Move the files that the last block wrote beside the tutorial; the reStructuredText that shows them."""
    folder = Path(variables["src_file"]).parent
    written = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime)
    moved = [shutil.move(path, next(variables["image_path_iterator"])) for path in written]
    return figure_rst(moved, settings["src_dir"])


def _get_sg_image_scraper() -> Any:
    return take
