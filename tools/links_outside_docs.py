"""A page of docs/ -> the same page without links to files outside docs/, which the built site does not hold.

MkDocs calls `on_page_markdown` for each page. A link such as [the licence](../LICENSE) becomes the licence (`LICENSE`).
A link to a file that does not exist stays, so that `mkdocs build --strict` finds it.
"""

import re
from pathlib import Path

LINK = re.compile(r"\[([^\[\]]+)\]\((\.\./[^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, page: object, config: dict, files: object) -> str:
    """Return the page's text with the names of files in place of links to them."""
    docs = Path(config["docs_dir"])

    def named(link: re.Match) -> str:
        path = (docs / page.file.src_uri).parent / link[2]
        if not path.exists():
            return link[0]
        name = path.resolve().relative_to(docs.parent).as_posix()
        return link[1] if link[1].strip("`/") in name else f"{link[1]} (`{name}`)"

    return LINK.sub(named, markdown)
