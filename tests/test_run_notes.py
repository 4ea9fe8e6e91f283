from datetime import datetime

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline import run_notes, verdicts
from pipeline.patient_table import tabulate
from pipeline.verdicts import Progress
from tests.conftest import ROOT

CARD = run_notes.BundleCard("lung_segmentation", "1.2.0", "Find the lung", "Research only")


@pytest.fixture
def manifest(phantom_manifest):
    return manifests.read(phantom_manifest)


def evaluation():
    """Patient a: Dice 2 * 3 / (2 * 3 + 2 + 0) = 0.75; patient b: 0.5; patient c lacks the class, one pixel is wrong."""
    counts = {"a": (3, 2, 0), "b": (1, 1, 1), "c": (0, 1, 0)}
    rows = [
        {"id": f"{name}_1", "patient": name, "counts": {"network": np.array([[9, 0, 0], count])}}
        for name, count in counts.items()
    ]
    about = {"partition": "test", "measures": ["dice", "iou"], "checkpoint_sha256": "0123456789abcdef" * 4}
    return about | tabulate(rows, ["background", "lung"])


def test_a_runs_name_says_bundle_network_data_and_date():
    when = datetime(2026, 11, 21, 14, 2)
    network = run_notes.network_text({"encoder": None, "width": 32, "depth": 4})
    assert run_notes.run_name("lung_segmentation", network, "montgomery test", when) == (
        "lung_segmentation | UNet width 32 depth 4 | montgomery test | 2026-11-21 14:02"
    )
    assert run_notes.network_text({"encoder": "resnet34", "width": 32, "depth": 4}) == "resnet34"
    assert run_notes.network_text({"network_def": {"_target_": "monai.networks.nets.DynUNet"}}) == "DynUNet"


BEST = Progress(30, 30, 0.7912, 21)


@pytest.mark.parametrize(
    ("status", "progress", "said"),
    [
        ("FINISHED", BEST, "trained 30 epochs; best validation Dice 0.791 after epoch 21; not tested"),
        ("FINISHED", Progress(1, 1), "trained 1 epoch; never validated; not tested"),
        (
            "KILLED",
            Progress(3, 30, 0.5, 2),
            "stopped after epoch 3 of 30; best validation Dice 0.500 after epoch 2; not tested",
        ),
        ("FAILED", Progress(0, 30), "failed after epoch 0 of 30: NaNError: no"),
        ("RUNNING", Progress(0, 30), "training has begun; nothing to judge yet"),
    ],
)
def test_a_trainings_verdict(status, progress, said):
    assert verdicts.training_verdict(status, progress, "NaNError: no") == said


def test_a_verdict_takes_in_what_tests_say():
    verdict = verdicts.training_verdict("FINISHED", BEST)
    once = verdicts.retold(verdict, ["test Dice 0.87 on 40 patients"])
    assert once == "trained 30 epochs; best validation Dice 0.791 after epoch 21; test Dice 0.87 on 40 patients"
    assert verdicts.retold(once, ["test Dice 0.87 on 40 patients", "test Dice 0.80 on 9 patients"]) == (
        once + "; test Dice 0.80 on 9 patients"
    )
    assert verdicts.retold(once, []) == verdict


def test_an_evaluations_note_has_both_conventions_intervals_and_the_split(manifest):
    table = evaluation()
    low, high = table["summary"]["network"]["interval_95"]["dice"]["lung"]
    assert verdicts.evaluation_verdict(table) == f"test Dice 0.62 ({low:.2f} to {high:.2f}) on 3 patients"
    note = run_notes.evaluation_note(CARD, "UNet", manifest, table)
    assert f"| lung | 0.625 ({low:.3f} to {high:.3f}) | 0.417 | 0.625 | 0.417 |" in note
    assert "of them with false positives of network: 1 (patients: 1, pixels: 1)" in note
    assert "- IoU: lung 0.467 (" in note
    assert "too narrow with fewer than about 30" in note
    assert "| training | 2 | 6 |" in note
    assert "Split by patient: no patient is in two partitions." in note
    assert "- Intended use: Research only." in note
    assert "`0123456789abcdef`" in note


def test_a_class_that_no_reference_has_is_not_defined(manifest):
    rows = [{"id": "a", "patient": "a", "counts": {"network": np.array([[9, 0, 0], [0, 0, 0]])}}]
    table = {"partition": "test", "measures": ["dice"], "checkpoint_sha256": "0"} | tabulate(rows, ["none", "lung"])
    assert verdicts.evaluation_verdict(table) == "test Dice not defined on 1 patient"
    assert "| lung | not defined | 1.000 | not defined | 1.000 |" in run_notes.evaluation_note(
        CARD, "UNet", manifest, table
    )


def test_a_trainings_note_says_what_it_may_not_be_used_for(manifest):
    verdict = verdicts.training_verdict("FINISHED", BEST)
    note = run_notes.training_note(CARD, "UNet", manifest, verdict)
    assert note.startswith(
        f"### Training: lung_segmentation on phantom_em\n\n**{verdict}**\n\nFind the lung. Network: UNet."
    )
    assert "it chose the epoch" in note
    assert "| test | 1 | 3 |" in note


def test_the_bundles_card_is_its_metadata():
    card = run_notes.bundle_card({"bundle_root": str(ROOT / "bundles" / "chest_xray_segmentation")}, "other")
    assert (card.name, card.version) == ("chest_xray_segmentation", "0.1.0")
    assert card.intended_use == "Research and demonstration of the pipeline; no clinical use"
    assert run_notes.bundle_card({"bundle_root": "/nowhere"}, "other") == run_notes.BundleCard("other")


def test_a_note_is_never_longer_than_a_tag_may_be(manifest):
    card = run_notes.BundleCard("lung", task="long " * 2000)
    assert 7500 < len(run_notes.training_note(card, "UNet", manifest, "v")) < 8000
