"""``report.html``: one file without links to others, so it can be mailed or archived."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem 1.2rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #a0aec0 }
pre { background: #f7fafc; padding: .8rem; overflow-x: auto; font-size: 12px; line-height: 1.35 }
img { max-width: 100% }
"""


def render(
    title: str,
    summary: Sequence[Sequence[str]],
    table: str,
    figures: Mapping[str, Figure | bytes],
    texts: Mapping[str, str],
    config: Mapping[str, Any],
) -> str:
    """A self-contained page.

    Args:
      title: heading.
      summary: rows of the dense-against-sparse table, the first its header.
      table: the per-leaf table, preformatted text.
      figures: caption -> figure, or bytes of a PNG; embedded as PNG.
      texts: caption -> preformatted text.
      config: shown in full at the end.
    """
    head, *body = [[html.escape(cell) for cell in row] for row in summary]
    rows = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    parts = [f"<h1>{html.escape(title)}</h1>", f"<table>{''.join(rows)}</table>"]
    for caption, figure in figures.items():
        parts.append(f"<h2>{html.escape(caption)}</h2>\n{_image(figure, caption)}")
    for caption, text in texts.items():
        parts.append(f"<h2>{html.escape(caption)}</h2>\n<pre>{html.escape(text)}</pre>")
    parts.append(f"<h2>Every leaf</h2>\n<pre>{html.escape(table)}</pre>")
    parts.append(f"<h2>Config</h2>\n<pre>{html.escape(json.dumps(config, indent=2))}</pre>")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _image(figure: Figure | bytes, caption: str) -> str:
    buffer = io.BytesIO(figure if isinstance(figure, bytes) else b"")
    if not isinstance(figure, bytes):
        figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
