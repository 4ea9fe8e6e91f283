"""Clusters of near-duplicates in the place of patients, where no patient is known."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import DataError, InputError
from pipeline.manifest import PARTITIONS, Manifest

CLUSTER = "cluster"
"""The column with a case's cluster; it lasts where the images are indexed anew."""

SHOWN = 3
"""New images that an error names."""


def group_by_cluster(manifest: Manifest, clusters: Mapping[str, str], because: str) -> Manifest:
    """The manifest with the name of its cluster as every case's patient, ready to be split by cluster.

    A cluster is named after its first case. One that has a name keeps it: new near-duplicates of its cases join it,
    and with it the partition or fold that it is in.

    Args:
        manifest: of cases that are each a patient of their own, or that were grouped before.
        clusters: the cluster of every case id, whatever its name, from `pipeline.duplicates`.
        because: why no patient is known.

    Raises:
        InputError: no reason is given, the manifest knows patients, or it was split otherwise.
        DataError: near-duplicates are in two partitions or folds; names them.
    """
    require_groupable(manifest, because)
    cases = [case for _, case in manifest.cases()]
    before = {case.id: (case.model_extra or {}).get(CLUSTER) for case in cases}
    name = _names(before, clusters)
    _require_one_place(manifest, name)
    record = (manifest.split or {}) | {"by": CLUSTER, "because": because}
    fields = manifest.model_dump(exclude_unset=True)
    for partition in (*PARTITIONS, "unassigned"):
        for row in fields.get(partition, []):
            row["patient"] = row[CLUSTER] = name[row["id"]]
    return Manifest(**(fields | {"split": record}))


def require_groupable(manifest: Manifest, because: str) -> None:
    """Refuse what `group_by_cluster` refuses before any picture is opened.

    Raises:
        InputError: no reason is given, the manifest knows patients, or it was split otherwise.
    """
    if not because.strip():
        raise InputError('a split by cluster trusts pictures, not names: say --because "..." no patient is known')
    by = (manifest.split or {}).get("by", "image")
    if by == CLUSTER:
        return
    if by != "image" or any(manifest.assigned()):
        raise InputError(f"this manifest is split by {by} already: index it anew to split it by cluster")
    cases = [case for _, case in manifest.cases()]
    patients = len({case.patient for case in cases})
    if patients < len(cases):
        raise InputError(f"this manifest knows {patients} patients of its {len(cases)} cases: split it by patient")


def _names(before: Mapping[str, str | None], clusters: Mapping[str, str]) -> dict[str, str]:
    """Case id -> name of its group: what is together in a cluster of before, or now, is together."""
    group = {case: {case} for case in before}
    first: dict[tuple[str, str], str] = {}
    for case, old in before.items():
        for kind, cluster in (("old", old), ("new", clusters.get(case))):
            if cluster is None:
                continue
            other = group[first.setdefault((kind, cluster), case)]
            if other is not group[case]:
                other |= group[case]
                group |= dict.fromkeys(group[case], other)
    names = {}
    for case, members in group.items():
        known = sorted({name for member in members if (name := before[member])})
        names[case] = known[0] if known else min(members)
    return names


def _require_one_place(manifest: Manifest, name: Mapping[str, str]) -> None:
    """A cluster is in one partition or fold; what joined two of them is a new case."""
    place: dict[str, tuple[str, str]] = {}
    for where, case in manifest.assigned():
        twin, home = place.setdefault(name[case.id], (case.id, where))
        if where != home:
            new = [c.id for c in manifest.unassigned if name[c.id] == name[case.id] and c.id not in (twin, case.id)]
            raise DataError(
                f"{twin!r} in {home} and {case.id!r} in {where} are now one cluster of near-duplicates"
                + (f", by way of {', '.join(map(repr, new[:SHOWN]))}" if new else "")
                + ": take the new images out, or index the manifest anew and split it again"
            )
