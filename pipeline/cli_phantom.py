"""Commands that make synthetic patients with exactly known labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.terminal import progress, say

app = typer.Typer(help="Make synthetic patients with exactly known labels.", no_args_is_help=True)


@app.command("em")
def phantom_em(
    folder: Annotated[Path, typer.Argument(help="Folder to write patients to.")],
    patients: Annotated[int, typer.Option(help="How many.")] = 10,
    sections: Annotated[int, typer.Option(help="Pages of each patient's stack.")] = 6,
    size: Annotated[int, typer.Option(help="Pixels of a section's side.")] = 192,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 1,
) -> None:
    """EM-like membranes: one TIFF stack of images and one of labels per patient."""
    from pipeline.phantom import write_em_patients

    write_em_patients(folder, patients=patients, sections=sections, size=size, seed=seed, progress=progress)
    say(f"{patients} synthetic patients -> {folder}")


@app.command("ct")
def phantom_ct(
    folder: Annotated[Path, typer.Argument(help="Empty or absent folder to write the series to.")],
    seed: Annotated[int, typer.Option(help="Another seed, another patient.")] = 1,
) -> None:
    """One CT-like DICOM series with a bright lesion."""
    from pipeline.phantom import write_ct_patient

    label = write_ct_patient(folder, seed=seed)
    say(f"{label.shape[2]} slices, a lesion of {int(label.sum())} voxels -> {folder}")


@app.command("dx")
def phantom_dx(
    folder: Annotated[Path, typer.Argument(help="Folder to write patients to.")],
    patients: Annotated[int, typer.Option(help="How many.")] = 10,
    size: Annotated[int, typer.Option(help="Pixels of a picture's side.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 1,
) -> None:
    """Chest-like projections as DICOM (DX or CR, inverted or not), and a PNG of the lungs per patient."""
    from pipeline.phantom import write_dx_patients

    write_dx_patients(folder, patients=patients, size=size, seed=seed, progress=progress)
    say(f"{patients} synthetic patients -> {folder}")


@app.command("volumes")
def phantom_volumes(
    folder: Annotated[Path, typer.Argument(help="Folder to write patients to.")],
    patients: Annotated[int, typer.Option(help="How many.")] = 20,
    kind: Annotated[str, typer.Option(help="nifti, or dicom: MR series, each with a DICOM SEG.")] = "nifti",
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 1,
) -> None:
    """Hippocampus-like volumes in 3D with two labelled parts, each stored along other axes."""
    from pipeline.volume_phantom import write_volume_patients

    write_volume_patients(folder, patients=patients, seed=seed, kind=kind, progress=progress)
    say(f"{patients} synthetic patients -> {folder}")
