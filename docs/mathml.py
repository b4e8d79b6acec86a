"""MkDocs hook: equations become MathML when the site is built, so that no script is loaded.

`pymdownx.arithmatex` marks the equations; browsers render MathML themselves.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Convert the equations of a page."""
    html = _DISPLAY.sub(lambda found: _mathml(found[1], "block"), html)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), html)


def _mathml(latex: str, display: str) -> str:
    return str(convert(unescape(latex).strip(), display=display))
