"""``report.html``: one file without links to others, so it can be mailed or archived."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; background: #fff }
table { border-collapse: collapse } td, th { padding: .2rem 1.2rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #a0aec0 }
pre { background: #f7fafc; padding: .8rem; overflow-x: auto; font-size: 12px; line-height: 1.35 }
figure { margin: 0 } figcaption { color: #4a5568; margin-top: .4rem } img { max-width: 100% }
"""


class Section(NamedTuple):
    """A heading with something under it.

    Attributes:
      title: the heading.
      content: a figure or bytes of a PNG, embedded; rows of a table, the first its
        header; or preformatted text.
      sentences: what is seen, and what it does not mean; stands under the content.
    """

    title: str
    content: Figure | bytes | Sequence[Sequence[str]] | str
    sentences: str = ""


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A self-contained page: a heading, a paragraph, and the sections in order."""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(lead)}</p>"]
    for section in sections:
        caption = f"<figcaption>{html.escape(section.sentences)}</figcaption>"
        parts.append(
            f"<h2>{html.escape(section.title)}</h2>\n<figure>{_content(section)}"
            f"{caption if section.sentences else ''}</figure>"
        )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _content(section: Section) -> str:
    if isinstance(section.content, str):
        return f"<pre>{html.escape(section.content)}</pre>"
    if isinstance(section.content, Sequence) and not isinstance(section.content, bytes):
        return _table(section.content)
    buffer = io.BytesIO(section.content if isinstance(section.content, bytes) else b"")
    if not isinstance(section.content, bytes):
        section.content.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"
