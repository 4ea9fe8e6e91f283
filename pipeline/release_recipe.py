"""The recipe of a release: how a dataset of the same layout is indexed, without who is in it and where it came from."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.recipe import read_recipe, recipe

LEFT_OUT = ("patient", "downloads", "listed")
"""What a recipe may say that belongs to one dataset: the name of its only patient, its files and where they are."""

HEAD = "# How the dataset of the training was indexed. To index one alike: overtile index FOLDER --recipe recipe.yaml\n"
"""The first line of the file."""


def write(given: Path, out: Path) -> None:
    """Write a recipe without what belongs to one dataset. Its patterns are written as they are.

    One without `image` leaves that to the folder, which then holds DICOM or describes itself; so it does in a release.

    Raises:
        InputError: it cannot be read, or is no recipe.
    """
    fields = read_recipe(given)
    recipe(fields if "image" in fields else {"dicom": {}} | fields, str(given))
    fields = {key: value for key, value in fields.items() if key not in LEFT_OUT}
    out.write_text(HEAD + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")
