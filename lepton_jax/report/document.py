"""A page of HTML that needs nothing but itself: no network, no script. What all pages share."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from lepton_jax.report import style


def document(title: str, heading: str, sections: Iterable[tuple[str, str]], top: str = "") -> str:
    """The page: a heading, `top` in HTML, and sections in HTML by name; those without content are left out."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    head = f"<title>{escape(title)}</title><style>{style.SHEET}</style>"
    return f"{OPENING}{head}</head><body><main><h1>{escape(heading)}</h1>{top}{body}</main></body></html>\n"


def escape(text: Any) -> str:
    """Text as HTML shows it; what is not valid Unicode (a class named by a broken file name) as `?`."""
    return html.escape(str(text).encode("utf-8", "replace").decode())


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table of texts; the first cell of a row is its heading."""
    return marked_up([escape(name) for name in head], ([escape(cell) for cell in row] for row in rows), kind)


def marked_up(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = (
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="{kind}">{thead}<tbody>{"".join(lines)}</tbody></table></div>'


OPENING = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
