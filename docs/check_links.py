"""Every link and image of the built site leads to a file and a place in it.

python docs/check_links.py docs/_build/html
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places of a page and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


@cache
def parsed(path: Path) -> Page:
    """A page of the site."""
    page = Page()
    page.feed(path.read_text())
    return page


def broken(site: Path) -> list[str]:
    """What leads nowhere: "page: link"; addresses elsewhere are not asked."""
    found = []
    pages = (p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts)
    for path in pages:
        for link in parsed(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("#__"):
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = path if not parts.path else target
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target.suffix == ".html":
                places = parsed(target).places
                if not {parts.fragment, unquote(parts.fragment)} & places:
                    found.append(f"{path.relative_to(site)}: {link}")
    return found


if __name__ == "__main__":
    wrong = broken(Path(sys.argv[1]))
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    sys.exit(1 if wrong else 0)
