from collections import Counter

import pytest

from pipeline.dealing import deal, in_order

SHARES = {"training": 0.7, "validation": 0.15, "test": 0.15}


def table(home, strata):
    """(stratum, bin) -> patients."""
    return Counter((strata[patient], name) for patient, name in home.items())


def test_ten_women_and_ten_men():
    strata = {f"{sex}{n}": sex for sex in "FM" for n in range(10)}
    assert table(deal(list(strata), {}, SHARES, strata), strata) == {
        ("F", "training"): 7, ("F", "validation"): 2, ("F", "test"): 1,
        ("M", "training"): 7, ("M", "validation"): 1, ("M", "test"): 2,
    }  # fmt: skip


def test_ten_strata_of_two_still_fill_every_partition_with_its_share():
    strata = {f"{band}{n}": band for band in "abcdefghij" for n in range(2)}
    home = deal(in_order(strata, 1), {}, SHARES, strata)
    assert Counter(home.values()) == {"training": 14, "validation": 3, "test": 3}
    assert all(1 <= count <= 2 for (_, name), count in table(home, strata).items() if name == "training")


@pytest.mark.parametrize("seed", range(20))
def test_every_count_is_its_share_rounded_up_or_down(seed):
    strata = {f"p{n}": "aaaabbbccd"[(n * seed) % 10] for n in range(37)}
    home = deal(in_order(strata, seed), {}, dict.fromkeys("12345", 0.2), strata)
    sizes = Counter(strata.values())
    counts = table(home, strata)
    assert all(abs(counts[stratum, name] - sizes[stratum] / 5) < 1 for stratum in sizes for name in "12345")
    assert sorted(Counter(home.values()).values()) == [7, 7, 7, 8, 8]


def test_who_has_a_bin_keeps_it_and_the_new_ones_fill_up():
    home = {"a": "1", "b": "1", "c": "1"}
    after = deal(["d", "e", "f"], home, {"1": 0.5, "2": 0.5}, dict.fromkeys("abcdef", ""))
    assert after == home | dict.fromkeys("def", "2")


def test_an_order_that_the_others_do_not_change():
    assert [p for p in in_order("abcdef", 7) if p in "bdf"] == in_order("bdf", 7)
    assert in_order("abcdef", 7) != in_order("abcdef", 8)


def test_five_strata_of_four_have_two_or_three_in_training():
    strata = {f"{band}{n}": band for band in "abcde" for n in range(4)}
    home = deal(list(strata), {}, SHARES, strata)
    assert Counter(home.values()) == {"training": 14, "validation": 3, "test": 3}
    assert Counter(table(home, strata)[band, "training"] for band in "abcde") == {3: 4, 2: 1}


def test_the_whole_share_of_a_stratum_comes_before_that_of_all():
    home = {"z1": "1", "z2": "1", "z3": "1", "z4": "1", "z5": "2", "z6": "3"}
    strata = {name: name[0] for name in (*home, "a1", "a2")}
    assert deal(["a1", "a2"], home, {"1": 0.5, "2": 0.25, "3": 0.25}, strata)["a1"] == "1"
