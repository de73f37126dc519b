"""The command line's notation, what each rule keeps, and that all of them keep the promises of a memory."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from namm_transfer import LayerView, MemoryCache, NammTransferError, check_policy, policies
from namm_transfer.cache.keyword import CACHE
from namm_transfer.policies import REGISTRY, ScoredPolicy
from namm_transfer.policy import EvictionPolicy
from namm_transfer.selection import merge_ties, top

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
    "infinipot-v:frame=8,keep=0.4",
]


def view(tokens=20, heads=2, batch=1, state=None, keys=None, values=None, layer=0, layers=1, update=0):
    positions = torch.arange(tokens, dtype=torch.int32).expand(batch, heads, -1)
    keys = torch.zeros(batch, heads, tokens, 4) if keys is None else keys
    return LayerView(
        layer=layer,
        heads=torch.arange(positions.shape[1]).expand(positions.shape[:2]),
        keys=keys,
        values=keys if values is None else values,
        positions=positions,
        state=state or {},
        seen=[tokens] * batch,
        update=update,
        layers=layers,
    )


def kept(policy, seen):
    return kept_of(policy.select(seen))


def kept_of(mask):
    return [head.nonzero().flatten().tolist() for head in mask[0]]


@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_keeps_the_promises(spec):
    check_policy(policies.make(spec, update_interval=48))


@pytest.mark.parametrize(
    "options",
    [{}, {"selection": "head"}, {"keep": 0.4}, {"attention_dtype": "bfloat16"}, {"selection": "head", "keydiff": 0.5}],
)
def test_namm_keeps_the_promises(random_namm, options):
    check_policy(random_namm(update_interval=48, **options))


def test_no_rule_is_forgotten():
    assert {spec.partition(":")[0] for spec in SPECS} | {"namm"} == set(REGISTRY)


def test_options_reach_the_policy():
    policy = policies.make("streaming:sinks=2,window=30", update_interval=64)
    assert (policy.sinks, policy.window, policy.update_interval) == (2, 30, 64)
    assert policies.make("h2o:keep=0.25,update_interval=32", update_interval=64).update_interval == 32
    assert policies.make("h2o:match=namm").match == "namm"
    assert policies.make("namm:path=namm-text-deep,pooled_tokens=90,threshold=0.5").pooled_tokens == 90
    assert policies.make("namm:keydiff=0.5").keydiff == 0.5


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
        ("namm:pooled_tokens=560", "pooled_tokens=560 with scorer='published'"),
        ("namm:keydiff=2", "keydiff=2.0: expected a share from 0 to 1"),
        ("namm:protect=4", "protect='4'.*A:B"),
        ("l2:protect=-1:4", "protect='-1:4'"),
        ("full:protect=a:b", "protect='a:b'"),
        ("h2o:budget=9,protect=4:6", "needs 10 tokens: budget=9"),
        ("streaming:sinks=2,window=4,protect=4:4", "needs 8 tokens: budget=6"),
        ("infinipot-v:frame=0", "frame=0"),
        ("infinipot-v:temporal=1.5", "temporal=1.5"),
        ("h2o:allocation=heads", "allocation='heads'.*uniform, ada, pyramid, layer, head"),
        ("h2o:allocation=head", "allocation=head: expected match=POLICY"),
        ("h2o:keep=0.5,allocation=layer", "allocation=layer: expected match=POLICY"),
        ("h2o:match=namm,allocation=pyramid", "match=namm already says"),
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


def test_infinipot_v_keeps_what_is_new_at_its_place_and_large_values():
    """Five frames of four places; only place 2 of frame 1 differs from the newest frame, which stays as a whole."""
    keys = torch.eye(4).repeat(5, 1)[None, None].clone()
    keys[0, 0, 6] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    values = torch.ones(1, 1, 20, 4)
    values[0, 0, [1, 11]] = 2.0
    seen = view(heads=1, keys=keys, values=values)
    policy = policies.make("infinipot-v:frame=4,budget=7,temporal=0.72")
    assert kept(policy, seen) == [[1, 6, 11, 16, 17, 18, 19]]
    assert policy.novelty(seen)[0, 0, [0, 6, 16]].tolist() == [1.0, 2.0, 4.0]
    assert kept(policies.make("infinipot-v:frame=4,budget=2,temporal=0"), seen) == [[1, 11]]


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


def test_a_schedule_by_head_is_met_by_each_head_and_on_average():
    policy = policies.with_schedule(
        policies.make("random:match=namm,allocation=head"), [[[10, 3, 1, 6], [2.5, 2.5, 0.25, 4.75]], [[1.0] * 4]]
    )
    keep = {(0, 0): [10, 3, 1, 6], (0, 1): [2, 3, 1, 5], (0, 7): [2, 3, 1, 5], (1, 0): [1, 1, 1, 1]}
    for (layer, update), sizes in keep.items():
        assert policy.select(view(heads=4, layer=layer, update=update)).sum(-1).tolist() == [sizes]
    with pytest.raises(NammTransferError, match="sizes for 4 heads; layer 0 has 2"):
        policy.select(view(heads=2))


def test_an_unresolved_match_is_refused():
    policy = policies.make("l2:match=namm")
    with pytest.raises(NammTransferError, match="namm"):
        policy.select(view())


WORDS = 12
ATTENTIVE = ["l2", "value-norm", "keydiff", "leverage", "h2o", "tova", "snapkv:window=8", "l2:allocation=ada"]


@pytest.mark.parametrize("spec", ATTENTIVE)
def test_of_equal_tokens_the_older_stays_however_a_prompt_is_cut_into_calls(spec):
    """In the first layer repeated words have equal keys and values but for rounding, which differs by the call."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="memory").eval()
    tokens = torch.randint(0, WORDS, (1, 128))
    caches = [MemoryCache(config, policy=policies.make(spec, update_interval=32)) for _ in range(3)]
    with torch.no_grad():
        for cache, calls in zip(caches, (128, 1, 7), strict=True):
            for part in tokens.split(calls, dim=1):
                model(part, **{CACHE: cache})
    assert all(torch.equal(caches[0].positions(0), other.positions(0)) for other in caches[1:])


def test_scores_that_rounding_tells_apart_are_ties():
    exact = torch.tensor([2.0, 1.0, 3.0, 1.0, 2.0, float("-inf"), float("inf"), 0.0])
    noise = 1 + torch.tensor([0, 3, 0, -3, 2, 0, 0, 0]) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(merge_ties(exact * noise).argsort(stable=True), exact.argsort(stable=True))
    different = torch.tensor([1.0, 1.00001, 0.99999])
    assert torch.equal(merge_ties(different), different)
    small = torch.tensor([1e-30, 2e-30, 0.0, -1e-30])
    assert torch.equal(merge_ties(small), small)


@pytest.mark.parametrize("size", ["keep=0.5", "budget=10"])
@pytest.mark.parametrize(
    "spec", [*ATTENTIVE, "recent", "streaming", "random", "namm:path={}", "h2o:allocation=pyramid"]
)
def test_protected_ends_stay_and_count_into_the_size(spec, size, tmp_path, random_namm):
    random_namm().save_pretrained(tmp_path)
    spec = spec.format(tmp_path)
    policy = policies.make(f"{spec}{',' if ':' in spec else ':'}{size},protect=3:5", update_interval=32)
    state = {name: torch.rand_like(tensor) for name, tensor in policy.state(1, 2, 20, torch.device("cpu")).items()}
    seen = view(state=state, keys=torch.rand(1, 2, 20, 4))
    mask = policy.decide(seen)
    ends = torch.tensor([0, 1, 2, 15, 16, 17, 18, 19])
    assert mask[..., ends].all()
    assert mask.sum() == 20


def test_protected_ends_stay_where_the_size_is_smaller():
    mask = policies.make("l2:keep=0.1,protect=3:5").decide(view(keys=torch.rand(1, 2, 20, 4)))
    assert kept_of(mask) == [[0, 1, 2, 15, 16, 17, 18, 19]] * 2


def test_protected_tokens_pass_the_threshold_of_a_namm(random_namm):
    strict = random_namm(selection="head", protect="2:3", threshold=1e6)
    seen = view(state=strict.state(1, 2, 20, torch.device("cpu")))
    assert kept_of(strict.decide(seen)) == [[0, 1, 17, 18, 19]] * 2
    assert kept_of(random_namm(selection="head", threshold=1e6).decide(seen)) == [[19]] * 2


def test_any_policy_can_be_told_to_protect(monkeypatch):
    @dataclass
    class Nothing(Forgetful):
        update_interval: int = 16

    monkeypatch.setitem(REGISTRY, "forgetful", Nothing)
    policy = policies.make("forgetful:protect=1:2", update_interval=16)
    assert policy.name == "forgetful"
    assert kept_of(policy.decide(view())) == [[0, 18, 19]] * 2
    assert policies.make("full:protect=4:64").protect == "4:64"


def test_padding_slots_are_never_protected():
    policy = policies.make("recent:budget=4,protect=2:2")
    seen = view(tokens=6)
    seen.positions = torch.tensor([[[-1, -1, 0, 1, 8, 9], [0, 1, 6, 7, 8, 9]]], dtype=torch.int32)
    assert kept_of(policy.decide(seen)) == [[2, 3, 4, 5], [0, 1, 4, 5]]


def test_recent_keeps_the_newest_alone():
    assert kept(policies.make("recent:budget=3"), view()) == [[17, 18, 19]] * 2


def test_value_norm_keeps_large_values():
    values = torch.ones(1, 1, 20, 4)
    values[0, 0, [3, 9]] = 2.0
    assert kept(policies.make("value-norm:budget=2"), view(heads=1, values=values)) == [[3, 9]]


def test_keydiff_keeps_keys_that_point_elsewhere_whatever_their_length():
    keys = torch.tensor([1.0, 0.1, 0.0, 0.0]).repeat(1, 1, 20, 1) * torch.rand(1, 1, 20, 1).add(0.5)
    keys[0, 0, 4] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    keys[0, 0, 11] = torch.tensor([-9.0, 0.0, 0.0, 0.0])
    assert kept(policies.make("keydiff:budget=2"), view(heads=1, keys=keys)) == [[4, 11]]


def test_leverage_is_the_diagonal_of_the_projection_onto_the_keys():
    keys = torch.randn(2, 3, 30, 4)
    found = policies.Leverage().scores(view(tokens=30, heads=3, batch=2, keys=keys))
    k = keys.double()
    hat = k @ torch.linalg.pinv(k)
    torch.testing.assert_close(found, hat.diagonal(dim1=-2, dim2=-1), atol=1e-4, rtol=0)
    same = torch.ones(1, 1, 20, 4)  # of rank one: the ridge keeps it finite
    assert abs(float(policies.Leverage().scores(view(heads=1, keys=same)).sum()) - 1) < 1e-5


@pytest.mark.parametrize("spec", ["keydiff", "leverage", "value-norm", "l2"])
def test_padding_slots_do_not_change_the_scores_of_keys(spec):
    keys = torch.randn(1, 1, 20, 4)
    seen = view(heads=1, keys=keys)
    seen.positions = torch.cat([torch.full((8,), -1), torch.arange(12)]).int()[None, None]
    alone = view(tokens=12, heads=1, keys=keys[:, :, 8:])
    rule = policies.make(spec)
    torch.testing.assert_close(rule.scores(seen)[..., 8:], rule.scores(alone))


def test_ada_gives_the_layers_tokens_to_the_heads_with_the_best_scores():
    keys = torch.ones(1, 2, 20, 1) * torch.tensor([1.0, 10.0])[None, :, None, None]
    keys += torch.arange(20.0)[:, None] * 0.01
    uniform = policies.make("l2:budget=10").select(view(keys=keys))
    assert uniform.sum(-1).tolist() == [[10, 10]]
    adaptive = policies.make("l2:budget=10,allocation=ada").select(view(keys=keys))
    assert adaptive.sum(-1).tolist() == [[18, 2]]  # the safeguard: a fifth of ten
    assert kept_of(adaptive)[1] == [0, 1]


def test_pyramid_gives_lower_layers_more_and_the_same_on_average():
    policy = policies.make("recent:budget=40,allocation=pyramid")
    held = [int(policy.select(view(tokens=200, layer=layer, layers=5)).sum(-1)[0, 0]) for layer in range(5)]
    assert held == [78, 59, 40, 21, 2]
    short = [int(policy.select(view(tokens=60, layer=layer, layers=5)).sum(-1)[0, 0]) for layer in range(5)]
    assert short == [60, 50, 40, 30, 20]
    assert int(policy.select(view(tokens=200)).sum(-1)[0, 0]) == 40


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


class LastBit(ScoredPolicy):
    """Lets rounding decide between equal keys."""

    def scores(self, seen):
        return -seen.keys.norm(dim=-1)

    def select(self, seen):
        return top(self.scores(seen), self.size.counts(seen))


class Remembering(ScoredPolicy):
    """Holds state of a sequence in the policy object."""

    calls = 0

    def scores(self, seen):
        self.calls += 1
        return (seen.positions * 7919 * self.calls) % 101


class TokenFirst(ScoredPolicy):
    """Puts the token where the batch should be."""

    def state(self, batch, heads, tokens, device):
        return {"mass": torch.zeros(tokens, batch, heads)}

    def scores(self, seen):
        return seen.positions


class Scores(EvictionPolicy):
    """Returns scores for a mask."""

    update_interval = 16

    def select(self, seen):
        return seen.positions.float()


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (DropsByRow(), "padding|place in the batch"),
        (Forgetful(), "heads without"),
        (LastBit(keep=0.5, update_interval=32), "rounding decides"),
        (Remembering(update_interval=16), "differently when it processes the same sequence again"),
        (TokenFirst(update_interval=16), r"shape \(0, 2, 3\): expected zeros of shape \(2, 3, ..., 0\)"),
        (Scores(), "expected bool of shape"),
    ],
)
def test_the_check_finds_broken_policies(policy, says):
    with pytest.raises(NammTransferError, match=says):
        check_policy(policy)
