"""A reviewer opens MLflow's page and the report in a browser; pictures of what is seen are kept for people to look at."""

import os
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import bundle
from pipeline.store import sqlite_store
from tests import reviewer
from tests.reviewer import route

EM = "neuron_em_segmentation"
DICE = "test_dice_membrane"

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not Path(reviewer.CHROMIUM).exists(), reason=f"no {reviewer.CHROMIUM}: apt-get install chromium"
    ),
]


@pytest.fixture(scope="module")
def reviewed(trained, phantom_manifest, tmp_path_factory):
    """A folder with the runs of a training and of its evaluation, and the test's Dice of an earlier model: 0.99."""
    folder = tmp_path_factory.mktemp("reviewed")
    shutil.copy(trained / "mlflow.db", folder)
    settings = {"manifest": str(phantom_manifest), "checkpoint": str(trained / "model.pt"), "output_dir": str(folder)}
    bundle.run(bundle.find(EM), "evaluating", settings)
    client = MlflowClient(sqlite_store(folder))
    earlier = client.create_run(client.get_experiment_by_name(EM).experiment_id, run_name="an earlier model")
    client.log_metric(earlier.info.run_id, DICE, 0.99)
    client.set_terminated(earlier.info.run_id)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pictures = os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")
    with reviewer.browser(pictures) as opened:
        yield opened
        assert opened.asked
        assert opened.elsewhere() == []


@pytest.fixture(scope="module")
def page(reviewed):
    """The address of MLflow's page."""
    with reviewer.reviewing(reviewed) as address:
        yield address


@pytest.fixture(scope="module")
def runs(reviewed):
    """The ids of the two runs: `training` and `test`."""
    with sqlite3.connect(reviewed / "mlflow.db") as store:
        return dict(store.execute("select value, run_uuid from tags where key = 'partition'").fetchall())


@pytest.fixture(scope="module")
def report(reviewed):
    """The report's file."""
    from pipeline import report, run_record

    path = reviewed / "report.html"
    report.write(report.html(run_record.read(str(reviewed))), path)
    return path


def test_the_watch_sees_what_strays(browser):
    tab = browser.context().new_page()
    tab.set_content("<img src='http://stray.example/of-the-test.png'>")
    tab.wait_for_function("document.images[0].complete")
    strayed = browser.elsewhere()
    browser.asked.remove("http://stray.example/of-the-test.png")
    browser.strayed.clear()
    assert strayed == ["http://stray.example/of-the-test.png", "GET http://stray.example/of-the-test.png HTTP/1.1"]


def test_runs_stand_with_their_verdict_and_figures_and_can_be_sorted(browser, page):
    with browser.page(page, "3 matching runs") as tab:
        tab.get_by_role("columnheader", name=DICE).first.wait_for()  # the table is drawn after its count
        heads = {head.strip() for head in tab.get_by_role("columnheader").all_inner_texts()}
        assert {"Run Name", "verdict", DICE} <= heads
        falling = column_of_runs(tab)
        browser.shoot(tab, "runs")
        with tab.expect_response(lambda answer: "runs/search" in answer.url):
            tab.get_by_role("columnheader", name=DICE).first.click()
        tab.wait_for_function(
            "[...document.querySelectorAll('[row-index=\"1\"]')].some(row => row.innerText.includes('0.99'))"
        )
        rising = column_of_runs(tab)
        browser.shoot(tab, "runs_sorted")
    assert (falling[0], falling[2]) == ("0.99", "-")  # the training has no score of the test
    assert rising == [falling[1], falling[0], "-"]


def column_of_runs(tab):
    """The Dice of the runs as they are seen from above: rows stand in the page in any order."""
    rows = tab.locator("[row-index]").filter(has=tab.locator(f"[col-id='metrics.`{DICE}`']"))
    cells = rows.evaluate_all(
        "(rows, id) => rows.map(row => [+row.getAttribute('row-index'), row.querySelector(`[col-id='${id}']`).innerText])",
        f"metrics.`{DICE}`",
    )
    return [text for _, text in sorted(cells)]


def test_a_run_tells_its_name_note_metrics_tags_and_data(browser, page, runs):
    with browser.page(route(page, f"runs/{runs['test']}"), DICE) as tab:
        browser.shoot(tab, "run")
        said = tab.locator("body").inner_text()
        for words in ("Finished", "Description", "phantom_em", "checkpoint_sha256", "verdict"):
            assert words in said
        tab.get_by_text("phantom_em (").first.click()
        tab.get_by_text("Digest:").wait_for()
        browser.shoot(tab, "dataset")
        assert re.search(r"cases:\s+3\b", tab.get_by_role("dialog").inner_text())


def test_the_model_is_registered_with_its_figures_and_an_alias(browser, page):
    with browser.page(route(page, f"/models/{EM}"), "Registered at") as tab:
        tab.get_by_text("candidate").first.wait_for()
        browser.shoot(tab, "registered")
        tab.get_by_text("Version 1", exact=True).click()
        tab.get_by_text("Source Run").first.wait_for()
        browser.shoot(tab, "version")
        assert "Dice" in tab.locator("body").inner_text()


def test_curves_are_drawn(browser, page, runs):
    with browser.page(route(page, f"runs/{runs['training']}/model-metrics"), "learning_rate") as tab:
        tab.locator(".js-plotly-plot .main-svg").first.wait_for()
        browser.shoot(tab, "curves")


@pytest.mark.parametrize("name", ["worst.png", "pictures/worst_1.png", "calibration.png"])
def test_pictures_are_shown(browser, page, runs, name):
    with browser.page(route(page, f"runs/{runs['test']}/artifacts/{name}"), Path(name).name) as tab:
        tab.wait_for_function("[...document.images].some(image => image.offsetWidth > 100)")
        browser.shoot(tab, f"artifact_{Path(name).stem}")


def test_the_table_of_cases_can_be_sorted(browser, page, runs):
    with browser.page(route(page, f"runs/{runs['test']}/artifacts/cases.json"), "cases.json") as tab:
        worst_first = column(tab, "Dice membrane")
        for _ in ("ascending", "descending"):
            tab.get_by_role("columnheader", name="Dice membrane").click()
        browser.shoot(tab, "cases")
        best_first = column(tab, "Dice membrane")
    assert len(worst_first) == 3
    assert worst_first == sorted(worst_first)
    assert best_first == worst_first[::-1]


def column(tab, name):
    """The numbers in a column of the table that is shown."""
    tab.get_by_role("row").nth(1).wait_for()
    heads, *rows = (row.split("\n") for row in tab.get_by_role("row").all_inner_texts())
    return [float(row[heads.index(name)]) for row in rows]


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "report_light": {"color_scheme": "light"},
        "report_dark": {"color_scheme": "dark"},
        "report_small": {"viewport": {"width": 400, "height": 800}},
        "report_print": {},
    }.items(),
)
def test_the_report_opens_from_a_stick(browser, report, name, options):
    context = browser.context(**options)
    asked = len(browser.asked)
    tab = context.new_page()
    tab.goto(report.as_uri())
    if name == "report_print":
        tab.emulate_media(media="print")
    browser.shoot(tab, name, full_page=True)
    width, screen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    fetched = [url for url in browser.asked[asked:] if not url.startswith("data:")]
    context.close()
    assert width <= screen
    assert fetched == [report.as_uri()]


FOCUSED = "(element => [element.innerText, getComputedStyle(element).outlineStyle])(document.activeElement)"
"""What has the keyboard, and how it shows."""


def test_the_report_is_read_by_keyboard(browser, report):
    context = browser.context()
    tab = context.new_page()
    tab.goto(report.as_uri())
    stops = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        stops.append(tab.evaluate(FOCUSED))
    browser.shoot(tab, "report_keyboard")
    context.close()
    assert stops[0] == ["Skip to the report", "solid"]
    assert [outline for _, outline in stops] == ["solid"] * len(stops)
    assert ["Worst cases first", "solid"] in stops
