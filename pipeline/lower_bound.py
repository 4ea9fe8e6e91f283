"""How low the mean of a few paired differences may truly be: the one-sided bound that the gate decides by.

Which bound errs least was simulated (tests/benchmarks/gate_rules.md). A new model often fares much worse in a few
patients; a sample then tends to hold too few of them, so that its mean is too good and its spread too small at once.
The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) and Student's t let
too much pass there. Johnson's t (J. Am. Stat. Assoc. 73, 1978, p. 536) takes part of the skewness out, Hall's
transformation of t (J. R. Stat. Soc. B 54, 1992, p. 221) more of it; where both tails are heavy it errs itself, and
Student's does not. So the lower of the two is taken. It needs no random numbers: the same patients give the same
verdict everywhere.

The price is power where a few patients fare much worse: one in 30 who loses a lot may refuse a model that is better in
the mean, since that patient may stand for one in ten.

No bound keeps its promise whatever the differences are (Bahadur and Savage, Ann. Math. Stat. 27, 1956, p. 1115): a
failure that none of the patients shows is not to be seen in them.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

LEAST = 2
"""Differences, below which there is no spread and no bound."""

STRAIGHT = 1e-9
"""Below that bend Hall's transformation is Student's t: the division by the bend would lose all digits."""


def lower(differences: np.ndarray, alpha: float) -> np.ndarray:
    """The lower bound of the mean: the lower one of Student's and of Hall's.

    Differences that are all equal have no spread: the bound is their value.

    Args:
        differences: (..., patients), two patients or more.
        alpha: how often the true mean may lie below it, 0.05.

    Returns:
        (...) float64.

    Raises:
        ValueError: fewer than two patients.

    Example:
        >>> float(lower(np.array([0.0, 0.0, 0.0, 0.0]), 0.05))
        0.0
    """
    values = np.asarray(differences, float)
    patients = values.shape[-1]
    if patients < LEAST:
        raise ValueError(f"a bound takes {LEAST} patients or more, got {patients}")
    error = values.std(axis=-1, ddof=1) / np.sqrt(patients)
    student = stats.t.ppf(1 - alpha, patients - 1)
    return values.mean(axis=-1) - np.maximum(student, _hall(student, skewness(values), patients)) * error


def upper(differences: np.ndarray, alpha: float) -> np.ndarray:
    """The upper bound of the mean, the mirror of `lower`."""
    return -lower(-np.asarray(differences, float), alpha)


def skewness(values: np.ndarray) -> np.ndarray:
    """Skewness with the correction for few values (G1), (..., n) -> (...); 0 of two values, and where all are equal."""
    count = values.shape[-1]
    away = values - values.mean(axis=-1, keepdims=True)
    spread = np.sqrt((away**2).mean(axis=-1))
    if count < 3:
        return np.zeros_like(spread)
    level = np.finfo(float).eps * np.abs(values).max(axis=-1)
    real = spread > 8 * level  # else it is rounding
    plain = np.divide((away**3).mean(axis=-1), np.where(real, spread, 1) ** 3)
    return np.where(real, plain, 0.0) * np.sqrt(count * (count - 1)) / (count - 2)


def _hall(student: float, skew: np.ndarray, patients: int) -> np.ndarray:
    """The quantile of t that Hall's cubic puts in the place of Student's: larger where the left tail is the long one.

    g(t) = t + a t^2 + a^2 t^3 / 3 + skew / (6 sqrt(n)) with a = skew / (3 sqrt(n)) is nearly symmetric; solved for t.
    """
    bend = skew / (3 * np.sqrt(patients))
    straight = np.abs(bend) < STRAIGHT
    safe = np.where(straight, 1.0, bend)
    bent = (np.cbrt(1 + 3 * safe * (student - bend / 2)) - 1) / safe
    return np.where(straight, student, bent)
