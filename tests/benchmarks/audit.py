"""The audit of volumes with labels, beside nnU-Net's `verify_dataset_integrity`.

Both decode every image and every label. Ours also compares each file with the digest that the index took and looks for
near-duplicates of two patients; theirs reads every label twice, in processes of its own, as many as there are cores.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.audit import audit
from pipeline.index import index
from pipeline.manifest import Manifest
from pipeline.recipe import recipe
from tests.benchmarks.harness import Row, Scale, in_turns, missing_peer

SIZES = {Scale.FULL: (1000, 3), Scale.QUICK: (12, 1)}
"""Volumes, and turns."""

SHAPE, LEAST = (40, 56, 40), 3.0
"""Voxels of a volume, those of the hippocampus; and how many times faster ours has to be."""

NNUNET = "nnunetv2.experiment_planning.verify_dataset_integrity"
DEFECTS = ("undeclared label", "other shape", "other spacing")
"""What is planted in three of a dozen volumes, for both to find. NaN is not among it: SimpleITK reads it as 0, so that
nnU-Net's check does not see it; ours does (tests/test_audit.py)."""


def rows(scale: Scale) -> Iterator[Row]:
    """Seconds for all volumes, which have no defect; then whether both find the same in those that have."""
    count, turns = SIZES[scale]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_dataset(root / "good", count)
        manifest = indexed(root / "good")
        why = missing_peer(NNUNET)
        calls = {"ours": lambda: _clean(manifest, root / "good")}
        if not why:
            calls["nnU-Net"] = lambda: theirs(root / "good")
        taken = in_turns(calls, turns, warmup=0)
        ours = taken.pop("ours")
        same = "" if why else equality(root / "bad")
    work = f"audit of {count:,} volumes of {' x '.join(map(str, SHAPE))} with labels"
    note = "ours also verifies digests and searches near-duplicates"
    yield Row(work, "s", ours, taken or {"nnU-Net": why}, aim={"nnU-Net": LEAST}, same=same, note=note)


def make_dataset(root: Path, count: int, defects: tuple[str, ...] = ()) -> None:
    """Volumes of noise, each its own, with two structures, in the folders that nnU-Net asks for."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        image, label = rng.integers(0, 256, SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
        label[10:20, 10:30, 10:20], label[20:30, 10:30, 10:20] = 1, 2
        spacing = np.diag([1.0, 1.0, 1.0, 1.0])
        defect = defects[number] if number < len(defects) else ""
        if defect == "undeclared label":
            label[0, 0, 0] = 7
        if defect == "other shape":
            label = label[:-1]
        if defect == "other spacing":
            spacing = np.diag([1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image, np.eye(4)), root / "imagesTr" / f"case_{number:04d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, spacing), root / "labelsTr" / f"case_{number:04d}.nii.gz")
    told = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2}}
    told |= {"numTraining": count, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(told))


def indexed(root: Path) -> Manifest:
    """The same files as a manifest."""
    names = {"image": "imagesTr/{patient}_0000.nii.gz", "label": "labelsTr/{patient}.nii.gz"}
    classes = [("background", 0), ("anterior", 1), ("posterior", 2)]
    return index(root, recipe({"name": "audited", "classes": classes, "modality": ["MRI"]} | names))


def _clean(manifest: Manifest, root: Path) -> None:
    """Our audit, which must find nothing but that the cases have no partition."""
    found = {finding.rule for finding in audit(manifest, root)} - {"unassigned cases"}
    if found:
        raise ValueError(f"the audit finds {', '.join(sorted(found))} in volumes that have no defect")


def theirs(root: Path) -> None:
    """nnU-Net's check, silent; it raises where it finds something."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    with contextlib.redirect_stdout(io.StringIO()):
        verify_dataset_integrity(str(root), num_processes=os.cpu_count() or 1)


def equality(root: Path) -> str:
    """That both find the planted defects and no other.

    Raises:
        ValueError: they do not.
    """
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    make_dataset(root, 12, DEFECTS)
    planted = {f"case_{number:04d}" for number in range(len(DEFECTS))}
    ours = {finding.case for finding in audit(indexed(root), root) if finding.severity == "error"}
    found = set()
    with contextlib.redirect_stdout(io.StringIO()):
        for label in sorted((root / "labelsTr").iterdir()):
            case = label.name.removesuffix(".nii.gz")
            image = str(root / "imagesTr" / f"{case}_0000.nii.gz")
            good = verify_labels(str(label), SimpleITKIO, [0, 1, 2]) and check_cases(
                [image], str(label), 1, SimpleITKIO
            )
            found |= set() if good else {case}
    if not ours == found == planted:
        raise ValueError(f"of {sorted(planted)} ours finds {sorted(ours)}, nnU-Net {sorted(found)}")
    return f"both find {', '.join(DEFECTS)} where they were planted, and nothing in the other volumes"
