"""A reviewer's browser: headless Chromium on the page of `overtile review`, and what it asks of the network.

python -m tests.reviewer demo/run docker        the two pictures of the README, from the run of `make demo`
"""

import re
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from pipeline.review import LOOPBACK

CHROMIUM = "/usr/bin/chromium"
"""Debian's."""

ITS_OWN = re.compile(
    r"\w+ (https?://)?(update.googleapis|content-autofill.googleapis|accounts.google|clients2.google)\.com[:/]"
)
"""What Chromium asks its maker, whatever page is open: for updates, the time and what a form is."""

SIZE = {"width": 1280, "height": 800}

PATIENCE_MS = 180_000
"""For a text to appear on a busy machine."""

ALREADY_SEEN = {
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}
"""What MLflow's page remembers of a reader, so that it opens without advertisements."""


class Browser:
    """Pages that may talk to this machine only.

    Attributes:
        asked: addresses of all requests that pages have made.
        strayed: first lines of what came to the proxy, through which everything goes that is not for this machine,
            also that of a page's workers.
    """

    def __init__(self, playwright, pictures):
        self.pictures = Path(pictures)
        self.asked, self.strayed = [], []
        self._proxy = socket.create_server((LOOPBACK, 0))
        threading.Thread(target=self._watch, daemon=True).start()
        arguments = ["--no-sandbox", f"--proxy-server={LOOPBACK}:{self._proxy.getsockname()[1]}"]
        self._chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        self._context = self.context()

    def context(self, **options):
        """A window of its own, say a dark or a small one."""
        context = self._chromium.new_context(**{"viewport": SIZE, "locale": "en-GB", "timezone_id": "UTC"} | options)
        context.set_default_timeout(PATIENCE_MS)
        context.on("request", lambda request: self.asked.append(request.url))
        for key, value in ALREADY_SEEN.items():
            context.add_init_script(f"try {{ localStorage.setItem('{key}', '{value}') }} catch {{}}")
        return context

    @contextmanager
    def page(self, address, shows):
        """A page that shows a text, in a tab of its own, as MLflow's page forgets little between two addresses."""
        page = self._context.new_page()
        try:
            page.goto(address, wait_until="commit")
            page.get_by_text(shows).first.wait_for()
            yield page
        finally:
            page.close()

    def shoot(self, page, name, **options):
        """Write what is seen to `pictures/NAME.png`, as soon as all images are drawn; the bytes."""
        page.wait_for_function("[...document.images].every(image => image.complete)")
        return page.screenshot(path=self.pictures / f"{name}.png", animations="disabled", caret="hide", **options)

    def elsewhere(self):
        """What was asked of any other machine than this one."""
        return [url for url in self.asked if urlsplit(url).hostname not in (None, LOOPBACK)] + self.strayed

    def close(self):
        self._chromium.close()
        self._proxy.close()

    def _watch(self):
        while True:
            try:
                stranger, _ = self._proxy.accept()
            except OSError:  # closed
                return
            with stranger:
                line = stranger.recv(200).decode(errors="replace").partition("\r")[0]
            if not ITS_OWN.match(line):
                self.strayed.append(line)


@contextmanager
def browser(pictures):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = Browser(playwright, pictures)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def reviewing(folder):
    """The address that `overtile review` prints, while it serves."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "pipeline", "review", str(folder), "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(timeout=60)


def route(address, place):
    """Another place of the same page: `runs/ID/artifacts/worst.png` of the experiment, or `/models` of all."""
    start, experiment = re.fullmatch(r"(http://[^#]+#)(/experiments/\d+)/runs\?.*", address).groups()
    return f"{start}{place if place[0] == '/' else f'{experiment}/{place}'}?workflowType=machine_learning"


def write_readme_pictures(folder, target):
    """The page of the newest evaluation as `review.png`, and the head of its report as `report.png`, for a README."""
    from pipeline import report, run_record

    with tempfile.TemporaryDirectory() as scratch, reviewing(folder) as address, browser(target) as opened:
        record = run_record.read(str(folder))
        page = Path(scratch) / "report.html"
        report.write(report.html(record), page)
        with opened.page(route(address, f"runs/{record.run.id}"), "Description") as tab:
            tab.get_by_text("Show more").first.click()
            opened.shoot(tab, "review")
        with opened.page(page.as_uri(), "Verdict") as tab:
            opened.shoot(tab, "report")
    for name in ("review", "report"):
        path = Path(target) / f"{name}.png"
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    write_readme_pictures(*map(Path, sys.argv[1:]))
