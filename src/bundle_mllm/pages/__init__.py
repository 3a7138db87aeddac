"""Pages and notebook cells as HTML: templates that escape every text, one style for all.

Knows nothing about models, items or numbers: it shows what it is given.
"""

from __future__ import annotations

import base64
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle_mllm.data.files import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment


def write_page(path: str | os.PathLike, template: str, **values: Any) -> Path:
    """Write a page that needs no other file, and neither loads nor runs anything.

    Args:
        path: The file.
        template: Name of a template of this folder.
        **values: What it shows.
    """
    path = Path(path)
    text = _environment().get_template(template).render(**values, layout="page.html")
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def notebook_cell(template: str, **values: Any) -> str:
    """Return the same as [`write_page`] writes, as a part of another page, such as a notebook."""
    return _environment().get_template(template).render(**values, layout="cell.html")


def data_uri(content: bytes, media_type: str) -> str:
    """Return a file as an address that holds the file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
