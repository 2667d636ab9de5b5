"""Pictures, numbers and pairs of images -> parts of an HTML page, each with all names escaped.

page.html is the form, style and script of the pages of a report and of predictions: it shows the first pair of a
`viewer` large, with a slider between original and reconstruction, and the others as buttons. Without the script all
pairs stand side by side.
"""

import io
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vqvae2.common import page
from vqvae2.common.errors import UserError
from vqvae2.common.page import escaped
from vqvae2.images.reading import load_picture

INDEX = "index.html"
MOST_BYTES = 4_200_000
"""Bytes of all pictures of a page, before base64 makes them a third larger: the page stays below 6 MB."""
SMALLER = ((False, None), (True, None), (True, 1600), (True, 1000), (True, 700), (True, 400), (True, 200))
"""Ways to embed pictures, each smaller than the one before: whether as JPEG, and the greatest width."""
QUALITY = 85
FLAG = re.compile(r"--[a-z][a-z-]*[a-z]")
SOFT_SIDE = 96
"""Images with a shorter side are enlarged in squares, not smoothly: a smooth picture would look like a better one."""
LONG = 2.2
"""Pictures so many times as wide as high are scrolled in their box on a narrow screen, not shrunk."""


class Embedded(NamedTuple):
    """This is a picture within the page."""

    uri: str
    width: int
    height: int


class Pair(NamedTuple):
    """These are an original and its reconstructions, one for each run of a viewer."""

    name: str
    told: str
    """What is said about the pair below it."""
    original: Embedded
    made: Sequence[Embedded]


class Cell(NamedTuple):
    """This is a number of a table, as text."""

    value: str
    more: Sequence[str] = ()
    """What stands below it, such as the interval; a line each."""
    why: str = ""
    """Why there is none, where the value is a dash."""


class Line(NamedTuple):
    """This is a line of a table."""

    name: str
    cells: Sequence[Cell | str]
    """A `Cell` is a number, aligned at the right; a str is text."""
    how: Sequence[tuple[str, str]] = ()
    """How it is read, below the line: clauses, each with a name in bold or "" before it."""
    belongs: bool = False
    """Whether the line belongs to the one above it."""


def document(title: str, head: str, body: Iterable[str]) -> bytes:
    """Return a whole page. `head` and `body` are HTML, `title` is text."""
    form = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return page.filled(form, title=escaped(title), head=head, body="\n".join(filter(None, body)))


def embedded(pictures: Mapping[Hashable, Image.Image | Path], most: int = MOST_BYTES) -> dict[Hashable, Embedded]:
    """Return pictures as they stand in a page, `most` bytes of them together; a file that is no picture is left out.

    They stay as they are where they fit. Otherwise those with colours become JPEG, then all do, and smaller ones.
    """
    found = {}
    for key, picture in pictures.items():
        with suppress(OSError, UserError):
            content, image = (picture.read_bytes(), load_picture(picture)) if isinstance(picture, Path) else (
                _encoded(picture, "PNG"), picture)
            if content.startswith(b"\x89PNG"):
                found[key] = content, image
    for number, (is_jpeg, width) in enumerate(SMALLER):
        made = {key: (content, "png") if not is_jpeg or (number == 1 and image.mode not in ("RGB", "RGBA", "P")) else
                (_encoded(_narrower(image, width), "JPEG"), "jpeg") for key, (content, image) in found.items()}
        if sum(len(content) for content, _ in made.values()) <= most:
            break
    return {key: Embedded(page.data_uri(*made[key]), *image.size) for key, (_, image) in found.items()}


def _narrower(image: Image.Image, width: int | None) -> Image.Image:
    image = image.convert("L" if image.mode in ("L", "1") else "RGB")
    return image if width is None or image.width <= width else image.resize(
        (width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **({"quality": QUALITY} if kind == "JPEG" else {}), optimize=True)
    return content.getvalue()


def prose(text: str) -> str:
    """Return a text as HTML whose lines do not break within a flag such as --per-scan."""
    return FLAG.sub(r'<span class="flag">\g<0></span>', escaped(text))


def section(title: str, *parts: str, name: str = "") -> str:
    """Return a section with its heading; none without parts. `name` is where a link leads."""
    inside = "\n".join(filter(None, parts))
    return inside and f'<section id="{escaped(name)}"><h2>{escaped(title)}</h2>\n{inside}\n</section>'


def figure(picture: Embedded | None, caption: str) -> str:
    """Return a picture below its caption; nothing where there is none."""
    if picture is None:
        return ""
    kind = "wide long" if picture.width > LONG * picture.height else "wide"
    return (f'<figure><figcaption>{escaped(caption)}</figcaption><div class="{kind}" tabindex="0" role="region" '
            f'aria-label="{escaped(caption)}">{_image(picture, caption)}</div></figure>')


def table(columns: Sequence[str], lines: Sequence[Line], label: str) -> str:
    """Return a table that scrolls in its own box; nothing without lines.

    Args:
        columns: the heads of all columns, the first of the lines' names.
        label: what the table is about, for those who cannot see it.
    """
    if not lines:
        return ""
    heads = "".join(f'<th scope="col"{_of_text(cell)}>{escaped(column)}</th>'
                    for column, cell in zip(columns, ("", *lines[0].cells)))
    rows = "\n".join(_line(line, len(columns), bool(number)) for number, line in enumerate(lines))
    kind = ' class="texts"' if all(isinstance(cell, str) for line in lines for cell in line.cells) else ""
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(label)}"><table{kind}><thead>'
            f"<tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table></div>")


def _line(line: Line, columns: int, may_belong: bool) -> str:
    kind = ' class="more"' if may_belong and line.belongs else ""
    how = " ".join(f"<b>{escaped(name)}</b> {prose(text)}" if name else prose(text) for name, text in line.how)
    row = f'<tr{kind}><th scope="row">{escaped(line.name)}</th>{"".join(map(_cell, line.cells))}</tr>'
    return row + (f'<tr class="how"><td class="text" colspan="{columns}"><span class="reading">{how}</span></td></tr>'
                  if how else "")


def _of_text(cell: Cell | str) -> str:
    return ' class="text"' if isinstance(cell, str) else ""


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td{_of_text(cell)}>{prose(cell)}</td>"
    more = "".join(f"<small>{escaped(line)}</small>" for line in cell.more)
    why = f'<small class="why">{escaped(cell.why)}</small>' if cell.why else ""
    return f"<td>{escaped(cell.value)}{more}{why}</td>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names and what they are, both text."""
    return '<dl class="facts">' + "".join(f"<dt>{escaped(name)}</dt><dd>{prose(text)}</dd>"
                                          for name, text in rows) + "</dl>"


def viewer(pairs: Sequence[Pair], labels: Sequence[str]) -> str:
    """Return a slider between originals and reconstructions; nothing without pairs.

    Args:
        labels: what the reconstructions of a pair are called, one for each.
    """
    if not pairs:
        return ""
    kinds = (" one" * (len(labels) == 1)
             + " fine" * (min(pairs[0].original.width, pairs[0].original.height) < SOFT_SIDE))
    frame = ('<div class="frame"><img alt=""><img class="over" alt=""><span class="left">original</span>'
             '<span class="right">{}</span></div>')
    buttons = "".join(
        f'<li><button type="button" aria-pressed="false" data-told="{escaped(pair.told)}" title="{escaped(pair.name)}">'
        + _image(pair.original, f"original of {pair.name}")
        + "".join(_image(made, f"{label} of {pair.name}") for made, label in zip(pair.made, labels))
        + "</button></li>" for pair in pairs)
    return (f'<div class="viewer{kinds}"><div class="stage"><div class="frames">'
            + "".join(frame.format(escaped(label)) for label in labels)
            + '</div><label class="slide">between original and reconstruction (arrow keys, or move over the picture)'
              '<input type="range" min="0" max="100" step="1" value="50"></label><p class="told"></p></div>'
              f'<ul class="pairs">{buttons}</ul></div>')


def _image(picture: Embedded, alt: str) -> str:
    return (f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escaped(alt)}">')
