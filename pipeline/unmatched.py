"""Image files that an index left out without being told to: a suffix in capitals, another spelling in a path."""

from __future__ import annotations

from pathlib import Path

from pipeline.index import is_readable
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe, composed
from pipeline.volumes import stem


def unmatched(root: Path, recipe: Recipe, manifest: Manifest) -> list[str]:
    """The image files under a dataset's folder that are neither image nor label of a case, by name alone.

    Args:
        root: folder that the paths in the manifest are relative to.
        recipe: whose list, if it has one, leaves files out on purpose; those are not told.
        manifest: what `pipeline.index` made of the folder.

    Returns:
        Paths relative to `root`, sorted.
    """
    taken = {path for _, case in manifest.cases() for path in (*case.images, case.label)}
    listed = recipe.listed_names(root)
    files = (path for path in root.rglob("*") if is_readable(path) and path.is_file())
    wanted = (path for path in files if listed is None or composed(stem(path)) in listed)
    return sorted({path.relative_to(root).as_posix() for path in wanted} - taken)


def as_sentence(left_out: list[str], recipe: Recipe) -> str:
    """How many files were left out and one of them, with the reason where it is the suffix in capitals."""
    suffix = Path(left_out[0]).suffix
    known = {Path(pattern).suffix for pattern in (recipe.image, recipe.label) if pattern}
    capitals = suffix not in known and suffix.lower() in {ending.lower() for ending in known}
    files = "1 image file matches" if len(left_out) == 1 else f"{len(left_out)} image files match"
    reason = f" ({suffix} is not as a pattern spells it: capitals count)" if capitals else ""
    return f"{files} no pattern, as {left_out[0]}{reason}"
