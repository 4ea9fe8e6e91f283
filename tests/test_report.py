import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline import report, run_record
from pipeline.errors import InputError
from pipeline.patient_table import tabulate
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


class Page(HTMLParser):
    """What the tests ask of a page: elements with their attributes, headings, cells, text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.headings, self.cells, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("td", "th"):
            self.cells[-1] += data
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
