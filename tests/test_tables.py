"""The tables in the documentation say what the code says."""

import re

import pytest
import tables
import transformers


@pytest.mark.parametrize("name", [name for name in tables.TABLES if name not in tables.CHECKED])
def test_a_table_is_what_the_code_says(name):
    path, make = tables.TABLES[name]
    found = tables.between((tables.ROOT / path).read_text(encoding="utf-8"), name)
    version = re.search(r"with transformers ([\d.]+)", found)
    if version and version[1] != transformers.__version__:
        pytest.skip(f"the table of errors is that of transformers {version[1]}")
    assert found == make(), f"{path} is out of date: python tests/tables.py writes it anew"
    assert found.count("\n") >= 6
