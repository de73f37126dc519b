"""Where the checkout and the recorded numbers lie."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PARITY = Path(__file__).parent / "data" / "parity"


def table_in(page: str, name: str) -> list[list[str]]:
    """The cells of a table that `tables.py` wrote into a page of the documentation, its header and rule included."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"<!-- table: {name} -->\n")[2]
    lines = text.partition("\n<!-- end of table -->")[0].split("\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
