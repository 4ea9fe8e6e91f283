import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline import calibration, report, report_cases, run_record, subgroups
from pipeline.errors import InputError
from pipeline.manifest import Case, Manifest
from pipeline.patient_table import tabulate
from pipeline.scoring import Scored
from pipeline.store import artifact_location, sqlite_store

SHA = "ab" * 32
COUNTS = {"a1": [60, 20, 20], "a2": [0, 0, 0], "b1": [50, 0, 50]}  # TP, FP, FN of class 1, of 1000 pixels


def evaluation(counts=COUNTS, patient=lambda case: case[0], **more):
    """Patient a: Dice 120 / 160 = 0.75 in one image, nothing in another; patient b: 100 / 150 = 0.667."""
    rows = [
        {
            "id": case,
            "patient": patient(case),
            "counts": {"network": np.array([[1000 - sum(c), c[2], c[1]], c])},
        }
        for case, c in counts.items()
    ]
    about = {"partition": "test", "manifest": "ducks", "measures": ["dice"], "checkpoint_sha256": SHA}
    overlap = {"overlap_with_training_patients": "none", "overlap_with_training_pixels": "none"}
    return about | overlap | tabulate(rows, ["pond", "<duck>"]) | more


def add_run(folder, name, *, tags=(), points=(), files=(), status="FINISHED"):
    """Write a run as a tracking handler would have."""
    client = MlflowClient(sqlite_store(folder))
    found = client.get_experiment_by_name("ducks")
    place = artifact_location(sqlite_store(folder))
    experiment = found.experiment_id if found else client.create_experiment("ducks", place)
    run = client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
    for key, values in dict(points).items():
        client.log_batch(run, metrics=[Metric(key, value, 0, step) for step, value in enumerate(values, start=1)])
    for file, content in dict(files).items():
        client.log_dict(run, content, file) if isinstance(content, dict) else client.log_image(run, content, file)
    if status != "RUNNING":
        client.set_terminated(run, status)
    return run


@pytest.fixture(scope="module")
def site(empty_store, tmp_path_factory):
    """A training and the evaluation of its weights in one store; not to be written to."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(empty_store, folder)
    add_run(
        folder,
        "swim",
        tags={"partition": "training", "checkpoint_sha256": SHA, "resumed": "1", "resumed.1.device": "GPU"},
        points={"loss": [0.9, 0.4], "val_mean_dice": [0.5, 0.7]},
    )
    picture = np.zeros((4, 4, 3), np.uint8)
    add_run(
        folder,
        "dive",
        tags={"partition": "test", "checkpoint_sha256": SHA},
        files={"evaluation.json": evaluation(), "worst.png": picture},
    )
    return folder


def with_table(record, table):
    """The same record with another table, as of another run."""
    files = dict(record.run.files) | ({"evaluation.json": json.dumps(table).encode()} if table else {})
    if table is None:
        del files["evaluation.json"]
    return replace(record, run=replace(record.run, id="0", files=files))


class Page(HTMLParser):
    """What the tests ask of a page: elements with their attributes, headings, cells, text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.headings, self.cells, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("td", "th"):
            self.cells[-1] += data.strip()
        self.text += data


@pytest.fixture(scope="module")
def page(site):
    return Page(report.html(run_record.read(str(site))))


def test_the_figures_are_those_of_the_table(page):
    table = evaluation()
    summary = table["summary"]["network"]
    low, high = summary["interval_95"]["dice"]["<duck>"]
    row = page.cells.index("<duck>")
    assert page.cells[row : row + 4] == ["<duck>", "0.708", f"{low:.3f} to {high:.3f}", "0.667"]
    assert summary["dice"]["<duck>"] == pytest.approx((0.75 + 2 / 3) / 2)
    assert "Mean Dice of <duck> is 0.708" in page.text
    assert "2 patients are few" in page.text


def test_the_page_loads_nothing(page):
    links = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "action", "data") if key in a]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [a for _, a in page.elements if "style" in a or any(key.startswith("on") for key in a)]
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_a_screen_reader_finds_its_way(page):
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in a for tag, a in page.elements if tag == "th")
    alts = [a.get("alt", "") for tag, a in page.elements if tag == "img"]
    assert [("b1" in alt, "50.0 % were missed" in alt) for alt in alts] == [(True, True)]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert set(targets) <= set(ids)
    assert dict(page.elements)["html"] == {"lang": "en"}
    assert tags.count("title") == tags.count("desc") + 1  # each chart has both, the page one more


def test_the_training_is_found_by_its_weights(page):
    assert "Dice on the validation partition was highest in epoch 2, 0.700" in page.text
    assert "resumed for the first time: device became GPU" in page.text


def test_cases_stand_from_the_worst_to_the_best(page):
    order = [cell for cell in page.cells if cell in COUNTS]
    assert order == ["b1", "a1", "a2"]
    assert "absent, none marked" in page.cells


def test_a_training_alone_says_so(site, empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    add_run(tmp_path, "swim", tags={"partition": "training"}, points={"loss": [0.9]})
    page = Page(report.html(run_record.read(str(tmp_path))))
    assert "NOT EVALUATED" in page.text
    assert "have not been scored on patients that were held back" in page.text


def test_a_crash_says_why(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    add_run(tmp_path, "swim", tags={"partition": "training", "failure": "ValueError: <NaN>"}, status="FAILED")
    page = Page(report.html(run_record.read(str(tmp_path))))
    assert "FAILED: ValueError: <NaN>." in page.text


def test_an_older_table_without_newer_parts_works_and_an_edited_one_is_refused(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    broken = evaluation()
    del broken["summary"]["network"]["iou"]
    run = add_run(tmp_path, "dive", tags={"partition": "test"}, files={"evaluation.json": broken})
    with pytest.raises(InputError, match=f"{run}: its evaluation.json or .* lacks what a report needs .'iou'"):
        report.html(run_record.read(run, sqlite_store(tmp_path)))


def test_the_previous_model_stands_beside_it_patient_by_patient(site):
    """Patient a: 0.75 against 0.5; patient b: the same."""
    record = run_record.read(str(site))
    weaker = evaluation(COUNTS | {"a1": [40, 40, 40]}, checkpoint_sha256="cd" * 32)
    page = Page(report.html(record, previous=with_table(record, weaker)))
    row = page.cells.index("Dice <duck>", page.cells.index("Measure"))
    assert page.cells[row : row + 4] == ["Dice <duck>", "0.708", "0.583", "+0.1250"]
    assert page.cells[row + 5 : row + 7] == ["1", "0"]  # better, worse
    assert "Dice <duck> differs by +0.1250" in page.text
    assert "neither is shown to be better" in page.text


def test_the_registered_champion_is_the_previous_model(empty_store, tmp_path):
    """Registered as `registry` does: under the bundle's name, with the digest of its weights."""
    folder = tmp_path
    shutil.copy(empty_store, folder)
    dive = add_run(folder, "dive", tags={"partition": "test"}, files={"evaluation.json": evaluation()})
    older = evaluation(COUNTS | {"a1": [40, 40, 40]}, checkpoint_sha256="cd" * 32)
    tags = {"partition": "test", "checkpoint_sha256": "cd" * 32}
    run = add_run(folder, "old", tags=tags, files={"evaluation.json": older})
    client = MlflowClient(sqlite_store(folder))
    client.create_registered_model("ducks")
    client.create_model_version("ducks", str(folder), run, tags={"checkpoint_sha256": "cd" * 32})
    record = run_record.read(dive, sqlite_store(folder))
    assert "no champion of this bundle is registered" in Page(report.html(record)).text
    client.set_registered_model_alias("ducks", "champion", "1")
    assert "The previous model is that of run old" in Page(report.html(record)).text
    other = with_table(record, evaluation(COUNTS | {"c1": [1, 1, 1]}))
    assert "(version 1) cannot be set beside it: was scored on other patients" in Page(report.html(other)).text
    same = with_table(record, older)
    assert "This model is the registered champion itself (version 1)" in Page(report.html(same)).text


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (evaluation({"a1": [60, 20, 20], "c1": [1, 1, 1]}), "1 are in both, 1 in this evaluation alone, 1 in the"),
        (evaluation(COUNTS | {"a3": [1, 1, 1]}), "on other images of these patients"),
        (evaluation(COUNTS | {"a1": [60, 20, 21]}), "other references, in 1 of 3 cases .* say in a1"),
        (evaluation(partition="validation"), "another partition: validation, not test"),
        (None, "no finished evaluation"),
    ],
)
def test_another_test_is_no_comparison(site, table, sentence):
    record = run_record.read(str(site))
    with pytest.raises(InputError, match=sentence):
        report.html(record, previous=with_table(record, table))


def test_the_run_itself_is_no_previous_one(site):
    record = run_record.read(str(site))
    with pytest.raises(InputError, match="names the run of the report itself"):
        report.html(record, previous=record)


def test_calibration_and_subgroups_have_tables_charts_and_a_sentence(site):
    """Ten patients in two groups; probabilities that are right as often as they say, but for one bin."""
    scorer = calibration.Calibration(["pond", "<duck>"])
    cases, rows = {}, []
    for number in range(10):
        name = f"p{number}"
        truth = np.zeros((8, 8), np.int64)
        truth[:4] = 1
        probability = np.full((2, 8, 8), 0.5) + np.where(truth, 0.4, -0.4) * np.array([-1, 1])[:, None, None]
        scorer.add(Scored(name, name, np.zeros((1, 8, 8)), truth, truth, probability.astype(np.float32), None, None))
        cases[name] = [32, 0, 0]
        rows.append({"id": name, "patient": name, "image": "x", "pond": "<big>" if number < 5 else "small"})
    manifest = Manifest(name="ducks", modality={"0": "grey"}, test=[Case(**row) for row in rows])
    table = evaluation(cases, patient=lambda case: case, calibration=scorer.table())
    table |= subgroups.tabulated(table, manifest)
    text = report.html(with_table(run_record.read(str(site)), table))
    page = Page(text)
    assert "differ by 10.0 % on average; on the whole it is not sure enough" in page.text
    row = page.cells.index("<big>")
    assert page.cells[row : row + 3] == ["<big>", "5", "1.000"]
    assert "style=" not in text
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([a-z]+-[mp][0-9a-f]{10})', text))
    assert used
    assert used <= set(ids)


def test_a_cross_validation_is_told_as_one(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    pooled = evaluation(checkpoint_sha256=[SHA, "cd" * 32], cautions=["The 2 folds share ducks."])
    parent = add_run(tmp_path, "cross", files={"cross_validation.json": pooled})
    for fold, cases in ((1, ("a1", "a2")), (2, ("b1",))):
        tags = {"mlflow.parentRunId": parent}
        points = {"val_mean_dice": [0.1 * fold, 0.2]}
        add_run(tmp_path, f"fold {fold}: training", tags=tags | {"partition": "training"}, points=points)
        part = evaluation({case: COUNTS[case] for case in cases})
        add_run(tmp_path, f"fold {fold}: test", tags=tags | {"partition": "test"}, files={"evaluation.json": part})
    page = Page(report.html(run_record.read(parent, sqlite_store(tmp_path))))
    assert "cross-validated on 3 images of 2 patients of ducks: 2 trainings" in page.text
    assert "The 2 folds share ducks." in page.text
    assert "fold 1, 0.200 in epoch 2 and fold 2, 0.200 in epoch 1" in page.text


def test_pictures_stand_from_the_worst_to_the_best_and_say_what_they_show():
    """b1 misses 50 of 100 pixels; a1 misses 20 of 80 and adds 20."""
    shown = [("best.png", "a2", "best"), ("median.png", "a1", "median"), ("worst_1.png", "b1", "worst 1")]
    table = evaluation(pictures=[{"file": f, "case": c, "rank": r, "dice": 0.5} for f, c, r in shown])
    found = report_cases.pictures(table, {f: b"png" for f, _, _ in shown})
    assert [picture.title for picture in found] == ["Worst 1: b1", "Median: a1", "Best: a2"]
    assert "of 100 pixels in the reference 50.0 % were missed; 0 pixels were added" in found[0].alt
    assert "20 pixels were added, 25.0 % of its size" in found[1].alt
    assert found[2].captions[0] == "The reference has no <duck>; nothing was marked."


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    out = tmp_path / "r.html"
    page = f'<meta name="generator" content="{report.GENERATOR} 1">'
    report.write(page, out)
    report.write(page + "2", out)
    assert out.read_text() == page + "2"
    out.write_text("letter")
    with pytest.raises(InputError, match="is no report of this program"):
        report.write(page, out)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ("nothing", "nothing: no such folder; to name a run by its id, give its store with --tracking-uri"),
        (".", "no mlflow.db in it or above"),
    ],
)
def test_what_is_no_run_is_told_in_a_sentence(overtile, tmp_path, monkeypatch, run, sentence):
    monkeypatch.chdir(tmp_path)
    code, output = overtile("report", run, "--out", "r.html")
    assert (code, sentence in output) == (2, True), output


def test_an_id_that_the_store_lacks(site):
    with pytest.raises(InputError, match="0123: neither a folder nor a run of sqlite"):
        run_record.read("0123", sqlite_store(site))


def test_a_moved_folder_keeps_its_files(site, overtile, tmp_path):
    moved = shutil.copytree(site, tmp_path / "moved")
    (run_id,) = [path.name for path in (site / "artifacts").iterdir() if (path / "artifacts/evaluation.json").exists()]
    (moved / "artifacts" / run_id / "artifacts" / "evaluation.json").write_text(json.dumps(evaluation(unit="image")))
    code, output = overtile("report", moved, "--out", tmp_path / "r.html")
    assert code == 0, output
    assert "2 images are few" in (tmp_path / "r.html").read_text()
