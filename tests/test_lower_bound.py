import numpy as np
import pytest
from scipy import stats

from pipeline.lower_bound import lower, skewness, upper

SYMMETRIC = np.array([-3.0, -1, 0, 1, 3])
LEFT = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, -10])


def test_without_skewness_it_is_students():
    ends = stats.ttest_1samp(SYMMETRIC, 0).confidence_interval(0.9)  # two-sided 90 %: 5 % on each side
    assert lower(SYMMETRIC, 0.05) == pytest.approx(ends.low) and upper(SYMMETRIC, 0.05) == pytest.approx(ends.high)


def test_where_a_few_are_much_worse_it_lies_lower_and_solves_halls_cubic():
    n, error = 10, LEFT.std(ddof=1) / np.sqrt(10)
    t, skew = (LEFT.mean() - lower(LEFT, 0.05)) / error, stats.skew(LEFT, bias=False)
    a = skew / (3 * np.sqrt(n))
    assert t + a * t**2 + a**2 * t**3 / 3 + skew / (6 * np.sqrt(n)) == pytest.approx(stats.t.ppf(0.95, 9))
    assert t > 4 > stats.t.ppf(0.95, 9)


def test_where_a_few_are_much_better_it_stays_students():
    assert lower(-LEFT, 0.05) == pytest.approx(stats.ttest_1samp(-LEFT, 0).confidence_interval(0.9).low)


def test_skewness_is_scipys():
    drawn = np.random.default_rng(0).exponential(size=(3, 7))
    assert skewness(drawn) == pytest.approx(stats.skew(drawn, axis=1, bias=False))


@pytest.mark.parametrize("value", [0.0, 0.1, -0.02])
@pytest.mark.parametrize("patients", [2, 3, 21])
def test_differences_that_are_all_equal_have_no_spread(value, patients):
    same = np.full(patients, value)
    assert lower(same, 0.05) == pytest.approx(value, abs=1e-15) == upper(same, 0.05)


def test_one_patient_has_no_bound():
    with pytest.raises(ValueError, match="2 patients or more, got 1"):
        lower(np.array([0.0]), 0.05)


def test_it_moves_and_stretches_with_the_differences():
    assert lower(3 * LEFT + 2, 0.05) == pytest.approx(3 * lower(LEFT, 0.05) + 2)
    assert lower(np.stack([LEFT, -LEFT]), 0.05) == pytest.approx([lower(LEFT, 0.05), lower(-LEFT, 0.05)])


@pytest.mark.parametrize(("shape", "most"), [("normal", 0.06), ("exponential", 0.08)])
def test_it_lets_few_unworthy_models_pass_where_the_percentile_bootstrap_lets_many(shape, most):
    random = np.random.default_rng(0)
    drawn = random.normal(size=(4000, 20)) if shape == "normal" else 1 - random.exponential(size=(4000, 20))
    assert (lower(drawn, 0.05) > 0).mean() < most  # the true mean is 0
    counts = random.multinomial(20, np.full(20, 0.05), 500)
    assert (np.quantile(drawn @ counts.T / 20, 0.05, axis=1) > 0).mean() > (0.11 if shape == "exponential" else 0.06)
