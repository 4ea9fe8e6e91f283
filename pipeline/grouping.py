"""Clusters of near-duplicates in the place of patients, where no patient is known."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import DataError, InputError
from pipeline.manifest import PARTITIONS, Manifest

SHOWN = 3
"""New images that an error names."""


def group_by_cluster(manifest: Manifest, clusters: Mapping[str, str], because: str) -> Manifest:
    """The manifest with the name of its cluster as every case's patient, ready to be split by cluster.

    A cluster is named after one of its images. What was one cluster stays one: new near-duplicates of its cases join
    it, and with it the partition or fold that it is in.

    Args:
        manifest: of cases that are each a patient of their own, or that were grouped before.
        clusters: the cluster of every case id, whatever its name, from `pipeline.duplicates`.
        because: why no patient is known.

    Raises:
        InputError: no reason is given, the manifest knows patients, or it was split otherwise.
        DataError: near-duplicates are in two partitions or folds; names them.
    """
    require_groupable(manifest, because)
    group = _groups(manifest, clusters)
    _require_one_place(manifest, group)
    assigned = {case.patient for _, case in manifest.assigned()}
    name: dict[str, str] = {}
    for _, case in sorted(manifest.cases(), key=lambda place: (place[1].patient not in assigned, place[1].patient)):
        name.setdefault(group[case.id], case.patient)
    fields = manifest.model_dump(exclude_unset=True)
    for partition in (*PARTITIONS, "unassigned"):
        for row in fields.get(partition, []):
            row["patient"] = name[group[row["id"]]]
    return Manifest(**(fields | {"split": (manifest.split or {}) | {"by": "cluster", "because": because}}))


def require_groupable(manifest: Manifest, because: str) -> None:
    """Refuse what `group_by_cluster` refuses before any picture is opened.

    Raises:
        InputError: no reason is given, the manifest knows patients, or it was split otherwise.
    """
    if not because.strip():
        raise InputError('a split by cluster trusts pictures, not names: say --because "..." no patient is known')
    by = (manifest.split or {}).get("by", "image")
    if by == "cluster":
        return
    if by != "image" or any(manifest.assigned()):
        raise InputError(f"this manifest is split by {by} already: index it anew to split it by cluster")
    cases = [case for _, case in manifest.cases()]
    patients = len({case.patient for case in cases})
    if patients < len(cases):
        raise InputError(f"this manifest knows {patients} patients of its {len(cases)} cases: split it by patient")


def _groups(manifest: Manifest, clusters: Mapping[str, str]) -> dict[str, str]:
    """Case id -> one case of its group: cases of one cluster are together, those of before and those of now."""
    group = {case.id: {case.id} for _, case in manifest.cases()}
    first: dict[tuple[str, str], str] = {}
    for _, case in manifest.cases():
        for key in (("before", case.patient), ("now", clusters.get(case.id, case.id))):
            together = group[first.setdefault(key, case.id)]
            together |= group[case.id]
            group |= dict.fromkeys(group[case.id], together)
    return {case: min(members) for case, members in group.items()}


def _require_one_place(manifest: Manifest, group: Mapping[str, str]) -> None:
    """A cluster is in one partition or fold; what joined two of them is a new image."""
    place: dict[str, tuple[str, str]] = {}
    settled = {case.id for _, case in manifest.assigned()}
    for where, case in manifest.assigned():
        twin, home = place.setdefault(group[case.id], (case.id, where))
        if where != home:
            new = [c.id for c in manifest.unassigned if group[c.id] == group[case.id] and c.id not in settled]
            way = f", by way of {', '.join(map(repr, new[:SHOWN]))}" if new else ""
            raise DataError(
                f"{twin!r} in {home} and {case.id!r} in {where} are now one cluster of near-duplicates{way}: "
                "take the new images out, or index the manifest anew and split it again"
            )
