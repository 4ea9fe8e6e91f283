import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline import report_gate
from pipeline.errors import InputError
from pipeline.gate import Rule, decide, needed, screen
from pipeline.gate_pairs import means
from pipeline.gate_picture import stacked
from pipeline.gate_simulation import simulated
from pipeline.retrain_record import RetrainRecord
from tests.evaluations import both

NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)
WAVY = [0.01, -0.01, 0.015, -0.005] * 6


class Page(HTMLParser):
    """Ids, addresses and inline styles, and the text of the paragraphs."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.addresses, self.styles, self.paragraphs = [], [], [], []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.addresses += [named[key] for key in ("src", "href", "xlink:href", "action") if key in named]
        self.styles += [named["style"]] if "style" in named else []
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "p"

    def handle_data(self, data):
        if self._inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def simulation():
    return simulated({"lung": WAVY}, Rule(), sealed=24)


@pytest.fixture
def record(simulation):
    """Of a retraining that was decided, by the differences on the sealed patients."""

    def made(sealed, **more):
        new, old = both(sealed, groups={"site": {f"p{n:02}": "ab"[n % 2] for n in range(len(sealed))}})
        seen_new, seen_old = both(WAVY)
        decision = decide(new, old, Rule())
        opening = {"opened_at": NOON + timedelta(hours=9), "deployed_sha256": "d", "new_sha256": "n", "patients": 24}
        return {
            "release": {"name": "lungs", "version": "0.1.0", "sha256": "ab", "signer": "SHA256:key"},
            "rule": Rule().as_json(),
            "rule_sha256": Rule().digest(),
            "rule_fixed_at": NOON,
            "index": {
                "cases": 80,
                "patients": 80,
                "refused": [{"what": "3 studies", "reason": "no label <b>at all</b>"}],
            },
            "audit": {"errors": [], "warnings": ["p01: touches the border"]},
            "split": {"training": {"patients": 40}, "validation": {"patients": 16}, "sealed": {"patients": 24}},
            "needed": needed(seen_old, Rule(), have=24).as_json(),
            "deployed_validation": means(seen_old),
            "new_validation": means(seen_new),
            "training": {
                "epochs": 40,
                "best_epoch": 31,
                "minutes": 120,
                "settings": {"learning_rate": 1e-4, "frozen": []},
            },
            "screen": screen(seen_new, seen_old, Rule()).as_json(),
            "simulation": simulation,
            "openings": [opening | {"rule_sha256": Rule().digest()}],
            "decision": decision.as_json(),
            "result": {"verdict": decision.verdict, "reason": decision.reason},
            "steps": {"verify": {"started": NOON, "finished": NOON + timedelta(minutes=3)}},
        } | more

    return made


@pytest.mark.parametrize(
    ("sealed", "first"),
    [
        (WAVY, "Accepted: the new model was shown not to be worse than the deployed one by the margin in lung."),
        ([d - 0.06 for d in WAVY], "Refused: the new model is worse than the deployed one in lung."),
        ([d - 0.02 for d in WAVY], "Refused: it was not shown that the new model is not worse"),
        (WAVY[:8], "Not decidable: there are too few sealed patients"),
    ],
)
def test_the_first_paragraph_is_the_verdict_and_why(record, sealed, first):
    page = Page(report_gate.html(record(sealed)))
    assert page.paragraphs[0].startswith(first) and "mean difference of" in page.paragraphs[0]


def test_a_retraining_that_stopped_early_has_a_page_too(record):
    whole = record(WAVY)
    assert Page(report_gate.html({})).paragraphs[0] == "Not finished: there is no verdict yet. Nothing was done yet."
    begun = {key: whole[key] for key in ("release", "rule", "steps")}
    assert "The release was verified; give the same command again" in Page(report_gate.html(begun)).paragraphs[0]
    wrong = begun | {"audit": {"errors": ["p01: a raw value 7"]}}
    assert Page(report_gate.html(wrong)).paragraphs[0].startswith("Stopped: the audit found 1 error")
    assert "p01: a raw value 7" in report_gate.html(wrong)
    failed = screen(*both([-0.05] * 5), Rule())
    screened = begun | {"screen": failed.as_json()}
    assert Page(report_gate.html(screened)).paragraphs[0].startswith("Refused on validation: the new model is worse")
    for parts in range(len(whole)):
        report_gate.html(dict(list(whole.items())[:parts]))


def test_a_release_is_named_and_without_one_nothing_may_leave(record):
    made = record(WAVY)
    assert "<strong>May leave:</strong> nothing" in report_gate.html(made)
    made["result"]["release"] = "lungs-0.1.1.zip"
    page = report_gate.html(made)
    assert "The release lungs-0.1.1.zip was made" in page and "the release lungs-0.1.1.zip, and nothing else" in page


def test_a_second_opening_and_an_overruled_check_stand_beside_the_verdict(record):
    made = record(WAVY)
    made["openings"] += [made["openings"][0] | {"new_sha256": "other", "previous": True}]
    made["release"]["trust"] = "confirmed by telephone"
    verdict = report_gate.html(made).split("</section>")[0]
    assert "opened 2 times" in verdict and "confirmed by telephone" in verdict
    assert "opened 2 times" not in report_gate.html(record(WAVY)).split("</section>")[0]


def test_a_rule_that_was_fixed_after_the_opening_is_shouted(record):
    assert "BEFORE the rule" not in report_gate.html(record(WAVY))
    assert "BEFORE the rule" in report_gate.html(record(WAVY, rule_fixed_at=NOON + timedelta(days=1)))


def test_the_page_loads_nothing_runs_nothing_of_others_and_escapes_everything(record):
    page = report_gate.html(record(WAVY, release={"name": '"><script>alert(1)</script>', "version": "`<i>`"}))
    seen = Page(page)
    assert [address for address in seen.addresses if not address.startswith("#")] == [] and seen.styles == []
    assert len(seen.ids) == len(set(seen.ids))
    assert "default-src 'none'" in page and page.count("<script>") == 1 and "<i>" not in page and "<b>" not in page
    assert not re.search(r"https?://", page.replace("http://www.w3.org", ""))
    assert page.count('tabindex="0"') == page.count('class="wide"') > 5  # wide tables scroll by keyboard


def test_the_picture_has_a_dot_for_everybody_and_says_itself_in_words(record):
    page = report_gate.html(record([d - 0.02 for d in WAVY]))
    drawn = page[page.index('<svg class="chart gate"') : page.index("</svg>")]
    assert drawn.count('stroke-opacity="0.7"') + drawn.count('fill-opacity="0.7"') >= 24
    assert "lung: 24 patients from \N{MINUS SIGN}0.030 to \N{MINUS SIGN}0.005" in drawn
    assert "12 of them lose more than the margin" in drawn


def test_equal_differences_are_stacked_within_their_line():
    assert np.ptp(stacked(np.zeros(100))) <= 0.7 and len(set(stacked(np.zeros(100)))) == 100
    assert list(stacked(np.array([0.0, 1.0]))) == [0, 0]


def test_it_is_written_over_its_like_alone(record, tmp_path):
    for _ in range(2):
        report_gate.write(RetrainRecord.model_validate(record(WAVY)), tmp_path / "report.html")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="would be overwritten"):
        report_gate.write({}, tmp_path / "mine.html")
    with pytest.raises(InputError, match="of another version"):
        report_gate.html({"index": {"files": 3}})
