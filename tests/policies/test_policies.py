"""The command line's notation, what each rule keeps, and that all of them keep the promises of a memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from namm_transfer import LayerView, NammTransferError, check_policy, policies
from namm_transfer.policies import REGISTRY
from namm_transfer.policy import EvictionPolicy
from namm_transfer.selection import top

SPECS = [
    "full",
    "streaming:sinks=4,window=12",
    "streaming:keep=0.4",
    "h2o:keep=0.5",
    "h2o:budget=20,recent=0.25",
    "l2",
    "tova:keep=0.3",
    "snapkv:window=16",
    "random:seed=3",
    "recent:budget=20",
    "value-norm",
    "keydiff:keep=0.4",
    "leverage",
    "h2o:keep=0.4,protect=3:5",
    "snapkv:window=16,keep=0.3,allocation=ada",
    "l2:keep=0.3,allocation=pyramid",
]


def view(tokens=20, heads=2, batch=1, state=None, keys=None, values=None, layer=0, layers=1, update=0):
    positions = torch.arange(tokens, dtype=torch.int32).expand(batch, heads, -1)
    keys = torch.zeros(batch, heads, tokens, 4) if keys is None else keys
    return LayerView(
        layer=layer,
        keys=keys,
        values=keys if values is None else values,
        positions=positions,
        state=state or {},
        seen=[tokens] * batch,
        update=update,
        layers=layers,
    )


def kept(policy, seen):
    return [head.nonzero().flatten().tolist() for head in policy.select(seen)[0]]


@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_keeps_the_promises(spec):
    check_policy(policies.make(spec, update_interval=48))


@pytest.mark.parametrize("options", [{}, {"selection": "head"}, {"keep": 0.4}, {"attention_dtype": "bfloat16"}])
def test_namm_keeps_the_promises(random_namm, options):
    check_policy(random_namm(update_interval=48, **options))


def test_no_rule_is_forgotten():
    assert {spec.partition(":")[0] for spec in SPECS} | {"namm"} == set(REGISTRY)


def test_options_reach_the_policy():
    policy = policies.make("streaming:sinks=2,window=30", update_interval=64)
    assert (policy.sinks, policy.window, policy.update_interval) == (2, 30, 64)
    assert policies.make("h2o:keep=0.25,update_interval=32", update_interval=64).update_interval == 32
    assert policies.make("h2o:match=namm").match == "namm"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("h3o", "'h3o'.*streaming, h2o"),
        ("h2o:kep=0.5", "'kep'.*keep"),
        ("h2o:keep=half", "keep='half'.*float"),
        ("h2o:keep", "'keep'"),
        ("h2o:keep=2", "keep=2.0"),
        ("h2o:keep=0.5,budget=3", "keep and budget"),
        ("h2o:budget=0", "budget=0"),
        ("h2o:keep=0.5,keep=0.7", "'keep' stands twice"),
        ("streaming:window=9,keep=0.5", "window or one of"),
        ("snapkv:kernel=4", "kernel=4"),
        ("h2o:recent=1.5", "recent=1.5"),
        ("l2:update_interval=0", "update_interval=0"),
        ("namm:path=nowhere-at-all", "nowhere-at-all"),
    ],
)
def test_bad_notation_is_named(spec, says):
    with pytest.raises(NammTransferError, match=says):
        policies.make(spec)


def test_streaming_keeps_sinks_and_window():
    assert kept(policies.make("streaming:sinks=2,window=3"), view()) == [[0, 1, 17, 18, 19]] * 2


def test_h2o_keeps_heavy_hitters_and_recent_tokens():
    policy = policies.make("h2o:budget=4")
    state = policy.state(1, 2, 20, torch.device("cpu"))
    rows = torch.zeros(1, 2, 3, 20)
    rows[0, 0, :, 5] = rows[0, 0, 0, 7] = 0.5
    rows[0, 1, :, 2] = rows[0, 1, 0, 3] = 0.5
    policy.observe(state, rows, [17], [3])
    assert kept(policy, view(state=state)) == [[5, 7, 18, 19], [2, 3, 18, 19]]


def test_l2_keeps_small_keys():
    keys = torch.ones(1, 1, 20, 4)
    keys[0, 0, [3, 9]] = 0.1
    assert kept(policies.make("l2:budget=2"), view(heads=1, keys=keys)) == [[3, 9]]


def test_tova_keeps_what_the_last_query_sees_in_all_heads():
    policy = policies.make("tova:budget=2")
    state = policy.state(1, 2, 20, torch.device("cpu"))
    rows = torch.zeros(1, 2, 4, 20)
    rows[0, :, :3, 1] = 1.0  # earlier queries do not count
    rows[0, 0, 3, 4], rows[0, 1, 3, 8], rows[0, 1, 3, 9] = 0.3, 0.9, 0.2
    policy.observe(state, rows, [16], [4])
    assert kept(policy, view(state=state)) == [[4, 8]] * 2


def test_tova_averages_a_token_over_heads_that_store_it_in_different_places():
    policy = policies.make("tova:budget=3")
    positions = torch.tensor([[[-1, 0, 4, 5, 9], [0, 2, 4, 5, 9]]], dtype=torch.int32)
    last = torch.tensor([[[0.9, 0.1, 0.1, 0.4, 0.4], [0.1, 0.3, 0.1, 0.2, 0.3]]])  # of a hole anything
    seen = view(tokens=5, state={"last": last}, update=1)
    seen.positions, seen.seen = positions, [10]
    torch.testing.assert_close(policy.scores(seen)[0, 1], torch.tensor([0.1, 0.15, 0.1, 0.3, 0.35]))
    torch.testing.assert_close(policy.scores(seen)[0, 0, 1:], torch.tensor([0.1, 0.1, 0.3, 0.35]))


def test_snapkv_without_place_for_its_window_keeps_the_newest_of_it():
    policy = policies.make("snapkv:window=4,budget=2")
    state = policy.state(1, 2, 20, torch.device("cpu"))
    state["votes"][..., 5] = 4.0  # all that four queries can give
    assert kept(policy, view(state=state)) == [[18, 19]] * 2
    roomy = policies.make("snapkv:window=4,kernel=1,budget=5")
    assert kept(roomy, view(state=state)) == [[5, 16, 17, 18, 19]] * 2


def test_snapkv_counts_its_window_only_and_starts_anew_each_interval():
    policy = policies.make("snapkv:window=2,kernel=1,budget=3", update_interval=4)
    state = policy.state(1, 1, 20, torch.device("cpu"))
    rows = torch.zeros(1, 1, 4, 20)
    rows[0, 0, 3, 5] = 1.0
    policy.observe(state, rows, [12], [4])
    assert state["votes"][0, 0, 5] == 1
    rows = torch.zeros(1, 1, 4, 20)
    rows[0, 0, 1, 3], rows[0, 0, 2, 6] = 1.0, 1.0  # the second of four queries lies before the window
    policy.observe(state, rows[:, :, :3], [16], [3])
    policy.observe(state, rows[:, :, 3:], [19], [1])
    assert kept(policy, view(heads=1, state=state)) == [[6, 18, 19]]


def test_random_is_a_hash_of_seed_layer_head_and_position():
    policy = policies.make("random:seed=1,keep=0.5")
    first = kept(policy, view())
    assert kept(policy, view()) == first
    assert first[0] != first[1]
    assert kept(policy, view(layer=1)) != first
    assert kept(policies.make("random:seed=2,keep=0.5"), view()) != first
    chances = policy.scores(view(tokens=20000, heads=1))
    assert abs(float((chances / 2**24).mean()) - 0.5) < 0.01
    assert len(chances.unique()) > 19900


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 14))
def test_ties_keep_the_older_token(scores, count):
    mask = top(torch.tensor(scores, dtype=torch.float32)[None, None], torch.tensor([[count]]))[0, 0].tolist()
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert [i for i, chosen in enumerate(mask) if chosen] == sorted(ranked[:count])


@pytest.mark.parametrize("spec", ["h2o:match=namm", "namm:match=h2o"])
def test_a_schedule_is_met_on_average(spec):
    policy = policies.with_schedule(policies.make(spec), [[10.0, 7.5], [3.25, 12.0]])
    assert policy.match is None
    state = policy.state(1, 4, 20, torch.device("cpu"))
    for layer, update, mean in ((0, 0, 10.0), (0, 1, 7.5), (1, 0, 3.25), (1, 5, 12.0)):
        counts = policy.select(view(heads=4, state=state, layer=layer, update=update)).sum(-1).float()
        assert counts.mean() == mean


def test_an_unresolved_match_is_refused():
    policy = policies.make("l2:match=namm")
    with pytest.raises(NammTransferError, match="namm"):
        policy.select(view())


class DropsByRow(EvictionPolicy):
    """Keeps more of row 0 than of the others: what a neighbour does must not matter."""

    update_interval = 16

    def select(self, seen):
        mask = seen.real.clone()
        mask[:1, :, :3] = False
        return mask


class Forgetful(EvictionPolicy):
    """Evicts everything."""

    update_interval = 16

    def select(self, seen):
        return torch.zeros_like(seen.real)


@pytest.mark.parametrize(
    ("policy", "says"), [(DropsByRow(), "padding|place in the batch"), (Forgetful(), "heads without")]
)
def test_the_check_finds_broken_policies(policy, says):
    with pytest.raises(NammTransferError, match=says):
        check_policy(policy)
