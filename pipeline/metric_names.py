"""Names that MLflow takes for a metric or a parameter, and those of a class's own figures."""

from __future__ import annotations

import re

LONGEST = 250
"""Characters of a name that MLflow stores."""


def allowed(key: str) -> str:
    """A name with every character that MLflow refuses replaced by `_`.

    Example:
        >>> allowed("dice, WT (%)")
        'dice_ WT ___'
    """
    return re.sub(r"[^\w. :/-]", "_", key)[:LONGEST]


def of_class(measure: str, name: str) -> str:
    """The name of a measure of one class; a `/` in the class's name would be a folder in MLflow's pages.

    Example:
        >>> of_class("val_dice", "tumour core/oedema")
        'val_dice_tumour_core_oedema'
    """
    return allowed(f"{measure}_{re.sub('[ /:]', '_', name)}")
