"""Changes that mkdocs makes to pages for the site; a code host shows the pages as they are."""

from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave out the gallery's links to report.md: the site has the same reports as report.html, under that name."""
    if page.file.src_uri != "reports/index.md":
        return markdown
    return "\n".join(
        line.partition(", ")[2] if line.startswith("[report.md](") else line for line in markdown.split("\n")
    )
