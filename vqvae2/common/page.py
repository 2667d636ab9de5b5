"""A form, text and facts -> one HTML file that needs no network and no other file, and lets no other script run.

A form is HTML with places such as <!--facts-->. What people write into names never becomes a part of the form: it is
`escaped`, or stands in `as_json`, whose values a script sets as text. The page's policy allows the form's own style and
script, by their hashes, and pictures that are in the page; nothing else is loaded or run.
"""

import base64
import hashlib
import html
import json
import re

BASE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --box: #fff; --line: #d5d9e0; --text: #1c2430; --dim: #566072; --link: #0b57b0; --on-tag: #fff;
  --mark: #b3261e; --mark-box: #fdecea; --good: #1a7042; --fair: #8a5200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --box: #1e232b; --line: #39414d; --text: #e6e9ee; --dim: #a3adbb; --link: #8ab8f5;
    --on-tag: #14171c; --mark: #ffb4ab; --mark-box: #46221f; --good: #7fd3a2; --fair: #f0b866;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.4 system-ui, "DejaVu Sans", sans-serif; }
:is(a, button, input, select, summary, [tabindex]):focus-visible {
  outline: 2px solid var(--link); outline-offset: 1px;
}
"""
"""The colours and the ground of every page: the place <!--base--> of a form."""
PLACE = re.compile(r"<!--(\w+)-->")


def filled(form: str, **content: str) -> bytes:
    """Return the page: `form` with `content` at its places, BASE at <!--base-->, and its policy at <!--policy-->.

    A <style> or <script> without attributes belongs to the page and is allowed by its hash. Equal arguments give equal
    bytes.
    Raises: KeyError for a place without content.
    """
    content = {"base": BASE, **content}

    def fill(text: str) -> str:
        return PLACE.sub(lambda place: content[place[1]], text)

    allowed = {tag: " ".join(_hash(fill(own)) for own in re.findall(f"<{tag}>(.*?)</{tag}>", form, re.DOTALL))
               for tag in ("style", "script")}
    content["policy"] = (f"default-src 'none'; img-src data:; style-src {allowed['style']}; "
                         f"script-src {allowed['script']}; base-uri 'none'; form-action 'none'")
    return fill(form).encode()


def escaped(text: object) -> str:
    """Return a text as HTML, also within quotes; bytes of a file name that are no text become such as \\udcff."""
    return html.escape(str(text).encode(errors="backslashreplace").decode())


def as_json(facts: object) -> str:
    """Return JSON in ASCII that ends no <script> and opens no comment, whatever the names in it are."""
    text = json.dumps(facts, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture's bytes, of a kind such as png or jpeg, as an address that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
