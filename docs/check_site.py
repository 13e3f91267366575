"""Links of the built site lead to a file and a place in it; notebooks have figures.

python docs/check_site.py docs/_build
"""

import json
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


def without_figure(notebooks: Path) -> list[str]:
    """Executed cells that draw a figure which is not there."""
    found = []
    for path in sorted(notebooks.rglob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            shown = [output.get("data", {}) for output in cell.get("outputs", ())]
            is_drawn = cell["cell_type"] == "code" and "plt.subplots(" in source
            if is_drawn and not any("image/png" in data for data in shown):
                found.append(f"{path.name}: no figure of {source[:60]!r}")
    return found


if __name__ == "__main__":
    build = Path(sys.argv[1])
    wrong = broken(build / "html") + without_figure(build / "jupyter_execute")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    sys.exit(1 if wrong else 0)
