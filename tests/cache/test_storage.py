import copy

import pytest
import torch

from namm_transfer.cache import storage as storage_module
from namm_transfer.cache.storage import TokenStorage


def filled(tokens: int, rows: int = 2) -> tuple[TokenStorage, dict[str, torch.Tensor]]:
    """A storage under test, and plain tensors of the same content."""
    shapes = {"keys": (rows, 3, tokens, 4), "positions": (rows, 3, tokens), "spectrum": (rows, 3, 5, tokens)}
    plain = {name: torch.randn(shape) for name, shape in shapes.items()}
    empty = {name: tensor.narrow(-2 if name == "keys" else -1, 0, 0).clone() for name, tensor in plain.items()}
    storage = TokenStorage(empty, 0)
    storage.append(tokens, plain)
    return storage, plain


def decode(storage: TokenStorage, plain: dict[str, torch.Tensor], tokens: range) -> int:
    """One token a call; how often everything was copied."""
    moved = 0
    for t in tokens:
        before = storage.view("keys").data_ptr()
        storage.append(1, {n: x.narrow(-2 if n == "keys" else -1, t, 1) for n, x in plain.items()})
        storage.fit()
        held = sum(storage.view(name).nbytes for name in storage.names)
        assert held <= storage.bytes <= 1.03 * held
        moved += storage.view("keys").data_ptr() != before
    return moved


def test_tokens_appended_one_by_one_are_the_tokens_stored_at_once():
    storage, _ = filled(0)
    _, plain = filled(90)
    decode(storage, plain, range(90))
    for name, tensor in plain.items():
        assert torch.equal(storage.view(name), tensor)


def test_decoding_copies_everything_once_in_40_tokens():
    storage, plain = filled(1600)
    storage.fit()
    assert decode(storage, plain, range(123)) == 3


def test_a_call_that_goes_on_growing_copies_seldom_and_gives_the_room_back():
    storage, plain = filled(20)
    moved = 0
    for _ in range(100):
        before = storage.view("keys").data_ptr()
        storage.append(20, plain)
        moved += storage.view("keys").data_ptr() != before
    assert moved <= 15
    storage.fit()
    assert storage.bytes <= 1.03 * sum(storage.view(name).nbytes for name in storage.names)


def test_what_is_not_given_is_zero_also_where_tokens_once_were():
    storage, plain = filled(8)
    storage.compact(torch.arange(4).expand(2, 3, 4))
    storage.append(4, {name: tensor[..., :4] for name, tensor in plain.items() if name == "positions"})
    assert not storage.view("spectrum")[..., 4:].any()
    assert not storage.view("keys")[..., 4:, :].any()
    assert torch.equal(storage.view("positions")[..., 4:], plain["positions"][..., :4])


def test_compaction_keeps_each_heads_own_tokens_and_gives_memory_back():
    storage, plain = filled(80)
    index = torch.rand(2, 3, 80).argsort(-1)[..., :20].sort(-1).values
    storage.compact(index)
    assert torch.equal(storage.view("positions"), plain["positions"].gather(-1, index))
    assert torch.equal(storage.view("keys"), plain["keys"].gather(2, index[..., None].expand(-1, -1, -1, 4)))
    assert torch.equal(storage.view("spectrum"), plain["spectrum"].gather(-1, index[:, :, None].expand(-1, -1, 5, -1)))
    before = storage.bytes
    storage.fit()
    assert storage.bytes == before / 4
    assert torch.equal(storage.view("positions"), plain["positions"].gather(-1, index))


@pytest.mark.parametrize(("tokens", "trims"), [(400, 0), (100_000, 1)])
def test_a_long_prompt_gives_its_memory_back_to_the_system(tokens, trims, monkeypatch):
    storage, _ = filled(2 * tokens, rows=1)
    asked = []
    monkeypatch.setattr(storage_module, "_trim", lambda: asked.append(True))
    storage.compact(torch.arange(2 * tokens).expand(1, 3, -1)[..., tokens // 2 :])
    storage.fit()
    assert len(asked) == trims


def test_rows_and_copies_are_their_own():
    storage, plain = filled(6)
    twin = copy.deepcopy(storage)
    storage.select_rows(torch.tensor([1, 1, 0]))
    storage.append(1, {})
    storage.view("keys").zero_()
    assert torch.equal(storage.view("positions", 6), plain["positions"][[1, 1, 0]])
    assert torch.equal(twin.view("keys"), plain["keys"])


def test_a_new_name_is_zero_beyond_what_was_put():
    storage, _ = filled(6)
    storage.put("pending", torch.ones(2, 3, 2, 4))
    assert storage.view("pending").sum(-1).eq(4).all()
    assert storage.view("pending").shape[-1] == 6
    storage.drop("pending")
    assert "pending" not in storage.names


@pytest.mark.parametrize("inside", [True, False])
def test_a_storage_filled_in_inference_mode_can_be_used_on_outside(inside):
    with torch.inference_mode(inside):
        storage, plain = filled(6)
    storage.append(1, {})
    storage.view("keys").add_(1)
    assert torch.equal(storage.view("keys", 6), plain["keys"] + 1)
