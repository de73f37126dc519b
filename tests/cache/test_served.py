"""Every class of language models that is served, through every check of the table in docs/models.md."""

import model_checks
import pytest
import torch
from cache.test_attention import SERVED
from hybrid_models import HYBRID
from places import table_in

CLASSES = SERVED | HYBRID
ROWS = table_in("docs/models.md", "served")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("check", model_checks.CHECKS)
@torch.no_grad()
def test_a_class_passes_as_the_table_says(name, check):
    model_checks.CHECKS[check](CLASSES[name])
    (row,) = (row for row in ROWS if row[0] == name)
    assert row[ROWS[0].index(check)] == "yes"


@pytest.mark.skipif(not HYBRID, reason="needs a transformers whose caches hold recurrent states")
def test_the_table_names_every_class():
    assert [(row[0], row[1]) for row in ROWS[2:]] == [
        (name, f"`{type(config).__name__}`") for name, config in CLASSES.items()
    ]
