"""The command `fingerprint`: arguments and printing. All work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from pipeline.terminal import console, say
from pipeline.terminal import progress as _progress

FILES = ("fingerprint.json", "fingerprint.png")
"""What the command writes."""


def fingerprint(
    manifest: Annotated[Path, typer.Argument(help="Manifest, or one fold of it: manifest.json#2.")],
    dataset_dir: Annotated[
        Path | None, typer.Option(help="Folder of the manifest's paths; default: the manifest's own.")
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="GB that a training step may take.")] = 8.0,
    output: Annotated[
        Path | None, typer.Option(help="Folder for JSON and picture; default: beside the manifest.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Propose for this bundle's network and keys.")] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the first level; default: the bundle's, or 32.")
    ] = None,
) -> None:
    """Sizes, spacings, intensities and classes of the training cases, and what they suggest to train with."""
    from dataclasses import asdict

    from pipeline import bundle as bundles
    from pipeline import fingerprint as fingerprints
    from pipeline import fingerprint_picture, proposal
    from pipeline.atomic import make_folder
    from pipeline.cautions import cautions
    from pipeline.fingerprint_tables import summary

    if not memory_gb > 0:
        raise InputError(f"--memory-gb must be more than 0, got {memory_gb:g}")
    if width is not None and width < 1:
        raise InputError(f"--width must be at least 1, got {width}")
    folder = output or default_output(manifest)
    make_folder(folder)
    home = bundles.find(bundle) if bundle else None
    deployed = bundles.settings(home, "predicting") if home else None
    found = fingerprints.fingerprint(manifest, dataset_dir, progress=_progress)
    plan = proposal.propose(found, memory_gb, settings=deployed, width=width)
    trained = {k: (deployed or {}).get(k, v) for k, v in bundles.settings(home, "training").items()} if home else None
    line, missing = proposal.words(
        plan,
        str(manifest),
        dataset_dir=str(dataset_dir) if dataset_dir else None,
        bundle=bundle or "BUNDLE",
        settings=trained,
    )
    sentences = cautions(found, plan)
    more = {"proposal": asdict(plan) | {"command": line}, "cautions": sentences}
    fingerprints.write(found, folder / FILES[0], more)
    fingerprint_picture.save(found, folder / FILES[1])
    for table in summary(found):
        console().print(table)
        say("")
    for sentence in sentences:
        say(f"! {sentence}")
    for text in (*plan.lines(), line):
        say(text)
    if missing:
        say(f"{bundle} has no key {', '.join(missing)}: left out.")
    say(f"Every case: {folder / FILES[0]}; picture: {folder / FILES[1]}")


def default_output(manifest: Path) -> Path:
    """`data_fingerprint` beside `data.json`, `data_fold_2_fingerprint` for its second fold."""
    return manifest.with_name(manifest.name.replace(".json", "").replace("#", "_fold_") + "_fingerprint")
