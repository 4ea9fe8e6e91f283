"""A real archive takes our segmentations by C-STORE and gives them back as they were.

Orthanc listens on every address whatever its configuration says, so it runs with its client in a network namespace of
its own, in which there is nothing but a loopback.
"""

import json
import shutil
import subprocess
import sys

import pytest
from pydicom import dcmread

from pipeline import dicom
from pipeline.dicom import read_series
from pipeline.seg import picture_segmentation, segmentation
from pipeline.terms import Release, Segment
from tests.test_dicom import make_block, make_series
from tests.test_seg import projection

ORTHANC = "/usr/sbin/Orthanc"
ABOUT = {"segments": [Segment("liver"), Segment("tumour")], "release": Release("Model", "1")}

PROFILE = """
[[TransferSyntaxes]]
[Plain]
TransferSyntax1 = LittleEndianExplicit
[[PresentationContexts]]
[Segmentations]
PresentationContext1 = 1.2.840.10008.5.1.4.1.1.66.4\\Plain
PresentationContext2 = 1.2.840.10008.5.1.4.1.1.66.7\\Plain
[[Profiles]]
[SEG]
PresentationContexts = Segmentations
"""
"""What storescu proposes to the archive: the SOP classes of BINARY and LABELMAP, which are not in its own list."""

SESSION = """
import json, subprocess, sys, time, urllib.error, urllib.request
folder, *files = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen(["/usr/sbin/Orthanc", f"{folder}/orthanc.json"], stdout=open(f"{folder}/log", "w"), stderr=subprocess.STDOUT)

def ask(path, body=None):
    with urllib.request.urlopen(f"http://127.0.0.1:18042{path}", body, timeout=10) as answer:
        return answer.read()

try:
    for _ in range(200):
        try:
            ask("/system")
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    for file in files:
        subprocess.run(["storescu", "-xf", f"{folder}/storescu.cfg", "SEG", "-aec", "ORTHANC", "127.0.0.1", "14242", file], check=True)
        for instance in json.loads(ask("/instances")):
            with open(f"{folder}/back-{instance}.dcm", "wb") as back:
                back.write(ask(f"/instances/{instance}/file"))
finally:
    server.terminate()
    server.wait(20)
"""
"""Run as a program of its own inside the namespace: starts Orthanc, stores the files, fetches what it then holds."""


@pytest.fixture(scope="module")
def namespace():
    """Skips where there is no Orthanc, no client, or no right to a network namespace."""
    for program in (ORTHANC, "storescu", "unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a network namespace")


@pytest.fixture(scope="module")
def exchanged(namespace, tmp_path_factory):
    """The files that were sent and those that came back, by SOPInstanceUID."""
    folder = tmp_path_factory.mktemp("orthanc")
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": 18042, "DicomPort": 14242, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "UnknownSopClassAccepted": True, "Plugins": [], "DicomCheckCalledAet": False,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    (folder / "storescu.cfg").write_text(PROFILE)
    series = read_series(make_series(folder / "ct"))
    picture = dicom.read_image(projection(folder / "dx/dx.dcm"))
    sent = []
    for kind in ("seg", "labelmap"):
        sent += [segmentation(make_block(), series, **ABOUT, kind=kind)]
    sent += [picture_segmentation(make_block()[0].T[:, :4], picture, **ABOUT)]
    sent += [segmentation(make_block(), series, **ABOUT)]  # the first one made again
    for number, dataset in enumerate(sent):
        dicom.save(dataset, folder / f"sent-{number}.dcm")
    files = sorted(folder.glob("sent-*.dcm"))
    line = ["unshare", "-n", sys.executable, "-c", SESSION, folder, *files]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "log").read_text()[-2000:]
    back = {dcmread(path).SOPInstanceUID: path for path in folder.glob("back-*.dcm")}
    return {path.stem: (path, back.get(dcmread(path).SOPInstanceUID)) for path in files}


@pytest.mark.parametrize("name", ["sent-0", "sent-1", "sent-2"], ids=["BINARY", "LABELMAP", "single image"])
def test_orthanc_gives_back_what_it_was_sent(exchanged, name):
    sent, back = exchanged[name]
    assert back is not None
    assert dcmread(back) == dcmread(sent)
    assert dcmread(back).PixelData == dcmread(sent).PixelData


def test_the_same_answer_again_is_no_further_instance(exchanged):
    assert exchanged["sent-3"][1] == exchanged["sent-0"][1]
    assert len({back for _, back in exchanged.values()}) == 3
