"""Every command of the README is run, or is a target of the Makefile."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
TOUR, STOPPED, REVIEWED, COMPARED, SITE, VOLUMES = (
    block.splitlines() for block in BLOCKS if block.startswith("overtile")
)
[SHARED] = (block.splitlines() for block in BLOCKS if block.startswith("torchrun"))

PAGES = ["README.md", "docker/README.md", *(f"bundles/{p.name}/docs/README.md" for p in (ROOT / "bundles").iterdir())]

SMALLER = ["--epochs", "1", "--patch", "64", "--patches_per_case", "1", "--workers", "0"]
"""Added to the tour's training, so that it takes seconds."""


def shell(words, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        words, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def follow(lines, folder, smaller=SMALLER):
    for line in lines:
        words = shlex.split(line)
        done = shell(words + (smaller if {"run", "compare", "crossvalidate"} & {*words} else []), folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_no_output_is_left_to_fill_in():
    assert not re.search(r"^[A-Z]+_OUTPUT$", README, re.MULTILINE)


@pytest.mark.timeout(900)
def test_the_tour_has_six_lines_and_runs(tmp_path):
    assert len(TOUR) == 6
    done = shell(
        ["overtile", "phantom", "em", "demo/data", "--patients", "5", "--sections", "2", "--size", "64"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    follow(TOUR + STOPPED + REVIEWED, tmp_path)
    assert (tmp_path / "mine/report.html").is_file()
    assert len(list((tmp_path / "mine/labels").rglob("image.tif"))) == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_and_predict(tmp_path):
    shell(["overtile", "phantom", "em", "demo/data", "--patients", "5", "--sections", "2", "--size", "64"], tmp_path)
    follow(TOUR[:2] + SHARED, tmp_path)
    assert len(list((tmp_path / "mine/archive").rglob("image.tif"))) == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_looking_and_comparing_run(tmp_path):
    shell(["overtile", "phantom", "em", "demo/data", "--patients", "5", "--sections", "2", "--size", "64"], tmp_path)
    follow(TOUR[:2] + COMPARED, tmp_path)
    found = {path.name for path in tmp_path.rglob("*") if path.suffix in (".png", ".json")}
    assert {"preview_training.png", "preview_augmented.png", "comparison.png", "cross_validation.json"} <= found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_site_retrains(tmp_path):
    shutil.copytree(ROOT / "data_manifest", tmp_path / "data_manifest")
    shell(["overtile", "phantom", "em", "demo/data", "--patients", "5", "--sections", "2", "--size", "64"], tmp_path)
    follow(TOUR[:2] + TOUR[3:5] + SITE[:-1], tmp_path)
    done = shell(shlex.split(SITE[-1]), tmp_path)
    assert done.returncode in (0, 3), done.stderr  # of a network of one epoch, either may come
    assert "20 sealed patients" in done.stdout
    assert (tmp_path / "site/out/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_volumes_go_from_dicom_to_dicom(tmp_path):
    follow(VOLUMES, tmp_path, ["--epochs", "1", "--width", "16", "--patches_per_case", "1", "--workers", "0"])
    assert len(list((tmp_path / "volumes/labels").rglob("*.certificate.json"))) == 10
    assert list(tmp_path.rglob("fingerprint.png"))


@pytest.mark.parametrize(
    "target", ["demo", "test", "setup", "lint", "smoke", "site", "locks", "test-slow", "bench", "clean"]
)
def test_the_makefile_has_and_lists_the_target(target):
    assert shell(["make", "-n", target], ROOT).returncode == 0
    assert re.search(rf"^{target} ", shell(["make"], ROOT).stdout, re.MULTILINE)


def test_other_commands_of_the_readme_are_make_targets():
    others = [
        line
        for block in BLOCKS
        for line in block.splitlines()
        if line not in TOUR + STOPPED + SHARED + REVIEWED + COMPARED + SITE + VOLUMES
    ]
    assert others == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
