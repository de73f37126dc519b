"""Arrays under their hashes."""

import hashlib
import pickle

import numpy as np
import pytest

from namm_transfer import NammTransferError
from namm_transfer.evals.report.records import ArrayStore


def test_arrays_survive_packing_and_are_packed_the_same_every_time(tmp_path):
    values = [np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 2)), np.array(1.5)]
    stores = [ArrayStore(tmp_path / name) for name in "ab"]
    names = [stores[0].put(value) for value in values]
    assert [stores[1].put(value) for value in reversed(values)] == names[::-1]
    for store in stores:
        store.pack()
        assert not store.loose.exists()
        for name, value in zip(names, values, strict=True):
            assert store.get(name).dtype == value.dtype
            assert np.array_equal(store.get(name), value)
    assert stores[0].packed.read_bytes() == stores[1].packed.read_bytes()


def test_packing_again_keeps_everything(tmp_path):
    store = ArrayStore(tmp_path)
    old = store.put(np.arange(3))
    store.pack()
    new = store.put(np.arange(4))
    store.pack()
    assert [len(store.get(name)) for name in (old, new)] == [3, 4]


def test_only_what_is_named_comes_from_elsewhere(tmp_path):
    store, source = ArrayStore(tmp_path / "all"), ArrayStore(tmp_path / "one")
    wanted, other = source.put(np.arange(3)), source.put(np.arange(4))
    store.pack([wanted], [source])
    assert len(store.get(wanted)) == 3
    assert len(source.get(other)) == 4
    with pytest.raises(NammTransferError, match="is missing"):
        store.get(other)


def test_a_cut_off_package_is_as_good_as_none(tmp_path):
    store = ArrayStore(tmp_path)
    name = store.put(np.arange(3))
    store.pack()
    store.packed.write_bytes(store.packed.read_bytes()[:-30])
    with pytest.raises(NammTransferError, match="is missing"):
        store.get(name)
    again = store.put(np.arange(3))
    store.pack()
    assert len(store.get(again)) == 3


def test_missing_damaged_and_pickled_arrays_are_refused(tmp_path):
    store = ArrayStore(tmp_path)
    name = store.put(np.arange(3))
    (store.loose / f"{name}.npy").write_bytes(b"something else")
    with pytest.raises(NammTransferError, match="is damaged"):
        store.get(name)
    with pytest.raises(NammTransferError, match="is missing"):
        store.get("0" * 64)
    with pytest.raises(NammTransferError, match="expected numbers"):
        store.put(np.array([object()]))


def test_a_name_that_leaves_the_folder_is_not_followed(tmp_path):
    np.save(tmp_path / "secret.npy", np.arange(3))
    store = ArrayStore(tmp_path / "report")
    (tmp_path / "report" / "arrays").mkdir(parents=True)
    with pytest.raises(NammTransferError, match="is missing"):
        store.get("../../secret")


def test_content_that_is_no_array_is_refused(tmp_path):
    for content in (b"", b"\x93NUMPY", pickle.dumps([1])):
        name = hashlib.sha256(content).hexdigest()
        (tmp_path / "arrays").mkdir(exist_ok=True)
        (tmp_path / "arrays" / f"{name}.npy").write_bytes(content)
        with pytest.raises(NammTransferError, match=r"is no \.npy file"):
            ArrayStore(tmp_path).get(name)
