import sys

import pytest
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import growth
import run


def test_a_ratio_is_of_one_round_and_a_figure_the_median_over_rounds():
    plain = [{"prefill_s": seconds} for seconds in (1.0, 10.0, 4.0)]
    full = [{"prefill_s": seconds, "bytes_held": held} for seconds, held in ((2.0, 5.0), (30.0, 5.0), (4.0, 7.0))]
    table = run.summary({"sdpa": plain, "full": full})
    assert table["full"] == {"prefill_s": 4.0, "prefill_s_ratio": 2.0, "bytes_held": 5.0}
    assert table["sdpa"]["prefill_s_ratio"] == 1.0


def test_a_cache_takes_what_its_peak_has_above_that_of_no_cache():
    table = run.summary({side: [{"prefill_peak": peak}] for side, peak in (("sdpa", 9.0), ("no-cache", 4.0))})
    assert (table["sdpa"]["cache_peak"], table["no-cache"]["cache_peak"]) == (5.0, 0.0)


@pytest.mark.parametrize(("factor", "bad"), [(1.0, 0), (1.01, sum(map(len, run.GUARD.values()))), (float("nan"), 6)])
def test_the_guard_names_every_ratio_beyond_its_limit(factor, bad):
    table = {side: {key: most * factor for key, most in limits.items()} for side, limits in run.GUARD.items()}
    assert len(run.exceeded(table)) == bad


def test_every_side_of_the_guard_is_measured():
    assert run.GUARD.keys() <= {*run.CASES["guard"].sides, *run.CASES["guard-heads"].sides}


def test_break_even_is_where_the_ratio_stays_below_one():
    assert growth.break_even([(1024, 2.0), (4096, 0.5)]) == pytest.approx(2 ** (10 + 4 / 3))
    assert growth.break_even([(1024, 0.9), (4096, 0.5)]) == 1024
    assert growth.break_even([(1024, 0.9), (4096, 1.5)]) is None
