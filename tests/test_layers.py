"""The house's floors as data: a file imports only files that stand before it."""

import ast

import pytest

from tests.conftest import ROOT

FLOORS = [
    ["errors"],
    ["verdicts", "release_files", "retrain_record", "processes"],
    [
        "plainly",
        "progress",
        "configuration",
        "heartbeat",
        "tables",
        "terminal",
        "child_process",
        "run_view",
        "scratch",
        "regular",
        "orientation",
        "dicom_bytes",
        "channel_rules",
        "terms",
        "metric_names",
        "logged_table",
        "stopwatch",
        "learning_curves",
    ],
    [
        "expressions",
        "review",
        "atomic",
        "body",
        "config_check",
        "labels",
        "encoders",
        "batches",
        "dicom_files",
        "dicom_values",
    ],
    ["store", "journal", "sealed", "signing", "state_files", "unpacking", "restricted", "told_child"],
    ["registry"],
    ["senders", "system_metrics"],
    ["delivery"],
    ["outbox"],
    ["sync"],
    ["paired_picture", "pictures", "volumes", "dicom_pixels", "header_file"],
    ["charts", "sampling"],
    [
        "networks",
        "resizing",
        "intensity",
        "spacing",
        "flips",
        "elastic",
        "losses",
        "precision",
        "metrics",
        "lower_bound",
        "reliability",
        "segments",
        "scoring",
        "instances",
        "manifest",
        "overlay",
        "dicom",
        "headers",
        "line",
        "memory",
        "folding",
    ],
    [
        "reach",
        "seg",
        "read_back",
        "synthetic_series",
        "study_channels",
        "seeding",
        "optimisation",
        "provenance",
        "failures",
        "dealing",
        "planes",
        "grouping",
        "groups",
        "registration",
        "seams",
        "candidates",
        "global_batch_norm",
    ],
    ["shares"],
    ["quirks", "synthetic_projection", "case_cache", "case_pictures", "device_defaults"],
    ["defects", "volume_phantom"],
    ["tiling", "stopping", "epoch_clock", "studies", "certificate", "out_of_memory", "engines"],
    ["deployed"],
    ["tile_pass"],
    ["inferers", "jobs"],
    ["loading", "recipe", "digests", "layouts", "case_statistics", "answers", "answered"],
    ["patients", "duplicates", "references", "fingerprint"],
    ["patch_size"],
    ["proposal"],
    ["cautions"],
    ["fingerprint_tables", "fingerprint_picture"],
    ["leaks"],
    ["lookalikes"],
    ["index"],
    ["checkpoint"],
    ["weights", "fine_tuning", "patient_table", "fetch", "unmatched", "dicom_index", "dicom_report"],
    ["indexing", "split", "audit", "phantom", "separation", "instance_scores", "surface_distances", "logged_model"],
    ["calibration"],
    ["patient_scores"],
    ["subgroups", "case_rows"],
    ["gate_rule", "gate_pairs"],
    ["gate_judged"],
    ["gate_words"],
    ["gate_before", "gate_simulation"],
    ["gate"],
    ["run_notes", "patient_flow", "data_inputs"],
    ["run_story", "parent_story"],
    ["tracking"],
    ["bundle", "predict", "evaluate", "patient_dice", "parent"],
    ["allowed", "expand", "reference_case", "release_archive", "release_figures", "release_recipe", "release_training"],
    ["bill_of_materials", "release_metadata", "release_weights", "wheel_file"],
    ["release_card"],
    ["release", "release_checks", "release_contents"],
    ["verify"],
    ["opened_release"],
    ["paired", "trials", "run_store", "report_words"],
    ["run_record"],
    ["report_charts", "report_figures", "report_cases", "report_origin", "report_pairs"],
    ["gate_picture"],
    ["report_sections", "report_trust", "report_gate_sections"],
    ["report"],
    ["report_gate"],
    ["children"],
    ["compare", "cli_dicom", "retrain_plan", "retrain_story", "retrain_registry"],
    ["retrain_data", "retrain_models", "retrain_verdict"],
    ["retrain_steps"],
    ["retrain"],
    [
        "cli_compare",
        "cli_data",
        "cli_fingerprint",
        "cli_phantom",
        "cli_release",
        "cli_report",
        "cli_review",
        "cli_tracking",
        "cli_verify",
    ],
    ["cli_retrain", "preview"],
    ["augmented"],
    ["cli"],
    ["__main__"],
]
"""From the cellar up; files of one floor do not know each other."""

ONLY = {
    "pydicom": {
        "defects",
        "dicom",
        "dicom_files",
        "dicom_pixels",
        "dicom_values",
        "header_file",
        "headers",
        "quirks",
        "seg",
        "synthetic_projection",
        "read_back",
        "certificate",
        "synthetic_series",
    },
    "highdicom": {"defects", "dicom", "seg"},
    "monai.bundle": {"bundle"},
    "mlflow": {"logged_model", "store", "system_metrics"},
    "cryptography": {"signing"},
    "pooch": {"fetch"},
    "cyclonedx": {"bill_of_materials"},
}
"""Packages that are imported in one place."""

FILES = {path.stem: path for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_a_floor():
    assert sorted(name for floor in FLOORS for name in floor) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    below = set()
    for floor in FLOORS:
        if name in floor:
            break
        below |= set(floor)
    ours = {module.split(".")[1] for module in imports(FILES[name]) if module.startswith("pipeline.")}
    assert ours <= below


@pytest.mark.parametrize(("package", "homes"), ONLY.items())
def test_packages_with_one_home(package, homes):
    users = {
        name
        for name, path in FILES.items()
        if any(module == package or module.startswith(package + ".") for module in imports(path))
    }
    assert users == homes


def test_only_the_command_prints():
    printing = {
        name
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli"}


def test_the_package_never_names_a_bundle():
    names = [path.name for path in (ROOT / "bundles").iterdir() if path.is_dir()]
    assert names
    assert not [(n, f) for n in names for f, path in FILES.items() if n in path.read_text()]
