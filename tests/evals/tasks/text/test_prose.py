"""The text every machine has: disjoint splits of prose."""

import pytest

from namm_transfer.evals.tasks.text import prose as text


@pytest.mark.parametrize("split", text.SPLITS)
def test_every_split_has_prose_from_many_documents(split):
    documents = text.documents(split)
    assert len(documents) >= 10
    assert sum(len(p) for d in documents for p in d.paragraphs) > 40_000
    assert all(40 <= len(s) <= 300 for d in documents for s in d.sentences)


def test_no_document_and_no_paragraph_is_in_two_splits():
    names = [d.name for split in text.SPLITS for d in text.documents(split)]
    paragraphs = [p for split in text.SPLITS for d in text.documents(split) for p in d.paragraphs]
    assert len(names) == len(set(names))
    assert len(paragraphs) == len(set(paragraphs))


def test_fingerprint_is_stable_within_a_python():
    assert text.fingerprint() == text.fingerprint()
    assert len(text.fingerprint()) == 16
