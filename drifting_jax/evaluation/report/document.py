"""An HTML page that needs no other file: its frame, its protocol, its pictures."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence

from drifting_jax.evaluation.report.page_style import STYLE
from drifting_jax.evaluation.report.tables import linked
from drifting_jax.files import shown, write_bytes

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_document(path: str | os.PathLike, title: str, sections: Sequence[str]) -> None:
    """Writes a page as one HTML file, whole or not at all.

    Args:
      path: of the file; its directory exists.
      title: heading, in plain text.
      sections: of its body, in HTML.
    """
    title = html.escape(title)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{title}</h1>\n{''.join(sections)}</main></body></html>\n"
    )
    write_bytes(path, shown(page).encode())


def protocol_section(protocol: Mapping[str, str]) -> str:
    """The section that says how the numbers were made, in words by name; empty without any."""
    if not protocol:
        return ""
    entries = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{linked(str(words))}</dd></div>"
        for name, words in protocol.items()
    )
    return f'<section><h2>Protocol</h2><dl class="protocol">{entries}</dl></section>\n'


def data_uri(image: bytes, kind: str = "png") -> str:
    """The address of a picture that is inside the page; `kind` as in "image/png"."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
