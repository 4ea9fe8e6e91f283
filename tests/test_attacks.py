"""What an attacker may do to a release, and which check refuses it: a corpus.

Each attack damages a good release. Where it is about what a release holds, it is signed with the right key afterwards:
then the signature cannot be what saves us. A canary, a file that the payloads would write, shows that none of them ran.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline import release_checks, release_contents, restricted, signing, unpacking, verify
from pipeline.release_archive import write_zip

NAME = "neuron_em_segmentation"
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
PAYLOAD = "__import__('os').system('touch $CANARY')"
STATE, SAFE = "models/model.pt", "models/model.safetensors"


def sums(files):
    rows = (f"{hashlib.sha256(files[n]).hexdigest()}  {n}\n" for n in sorted(files) if n not in (SUMS, SIGNATURE))
    return "".join(rows).encode()


def sealed(files, key):
    files[SUMS] = sums(files)
    files[SIGNATURE] = signing.sign(key, files[SUMS])


def zipped(files):
    buffer = io.BytesIO()
    write_zip({f"{NAME}/{name}": content for name, content in files.items()}, buffer)
    return buffer.getvalue()


# --- the zip ------------------------------------------------------------------------------------------------------


def entry(name, content=b"evil", mode=stat.S_IFREG | 0o644, compression=zipfile.ZIP_DEFLATED):
    """One more entry in the zip."""

    def attack(data):
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr, info.compress_type = 3, mode << 16, compression
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr(info, content)
        return buffer.getvalue()

    return attack


def many(data):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        for number in range(200):
            file.writestr(f"{NAME}/{number}", b"")
    return buffer.getvalue()


def commented(data):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"<script>"
    return buffer.getvalue()


def overlapped(data):
    """The last entry of the list is the first one's bytes once more."""
    data = bytearray(data)
    at = data.rindex(b"PK\1\2")
    data[at + 42 : at + 46] = bytes(4)
    return bytes(data)


OF_THE_ZIP = {
    "path escape": (entry(f"{NAME}/../../evil"), "leads out of the folder"),
    "absolute path": (entry("/etc/cron.d/evil"), "has an absolute path"),
    "path of Windows": (entry("C:\\evil"), "has an absolute path"),
    "symlink": (entry(f"{NAME}/data", b"/etc", stat.S_IFLNK | 0o777), "is a link or another special file"),
    "device": (entry(f"{NAME}/data", b"", stat.S_IFBLK | 0o666), "is a link or another special file"),
    "bomb by expansion": (entry(f"{NAME}/a", bytes(2**24)), "expands more than 200 times"),
    "bomb of many files": (many, "entries; 100 are the most"),
    "bomb of overlapping entries": (overlapped, "entries overlap"),
    "entry twice": (entry(f"{NAME}/LICENSE"), "two entries for"),
    "entry twice but for capitals": (entry(f"{NAME}/license"), "two entries for"),
    "second folder": (entry("other/a"), "has no single folder at its top"),
    "compressed otherwise": (entry(f"{NAME}/a", compression=zipfile.ZIP_LZMA), "another way than deflate"),
    "comment": (commented, "does not end as a zip does"),
    "zip and shell script": (lambda data: b"#!/bin/sh\ntouch $CANARY\n" + data, "does not begin as a zip does"),
    "two zips": (lambda data: data + data, "bytes between them that belong to none"),
    "cut off": (lambda data: data[: len(data) // 2], "does not end as a zip does"),
}  # fmt: skip


# --- digests and signature: nobody signs anew ---------------------------------------------------------------------


def changed_byte(files):
    files[SAFE] = files[SAFE][:-1] + bytes([files[SAFE][-1] ^ 1])


def changed_with_sums(files):
    changed_byte(files)
    files[SUMS] = sums(files)


def unlisted(files):
    files["docs/more.md"] = b""


def dropped_from_sums(files):
    files[SUMS] = b"".join(line for line in files[SUMS].splitlines(True) if b"LICENSE" not in line)


def signed_by_a_stranger(files):
    sealed(files, Ed25519PrivateKey.generate())


def signature_of_other_bytes(files):
    files[SIGNATURE] = files[SIGNATURE][32:] + files[SIGNATURE][:32]


OF_THE_SEAL = {
    "unlisted file": (unlisted, "digests", "docs/more.md is not in SHA256SUMS"),
    "missing file": (lambda f: f.pop("LICENSE"), "digests", "LICENSE is missing"),
    "changed byte": (changed_byte, "digests", "model.safetensors has been changed"),
    "no sums": (lambda f: f.pop(SUMS), "digests", "SHA256SUMS is missing"),
    "file twice in the sums": (lambda f: f.update({SUMS: f[SUMS] * 2}), "digests", "or a file twice"),
    "a file less in the sums": (dropped_from_sums, "digests", "LICENSE is not in SHA256SUMS"),
    "changed byte and sums": (changed_with_sums, "signature", "signature is not of the owner"),
    "signed by a stranger": (signed_by_a_stranger, "signature", "signature is not of the owner"),
    "no signature": (lambda f: f.pop(SIGNATURE), "signature", "the release is not signed"),
    "other signature": (signature_of_other_bytes, "signature", "signature is not of the owner"),
    "short signature": (lambda f: f.update({SIGNATURE: b""}), "signature", "signature is not of the owner"),
}  # fmt: skip


# --- what is in it: signed with the right key -----------------------------------------------------------------------


def config(change, name="inference.json"):
    def attack(files):
        found = json.loads(files[f"configs/{name}"])
        change(found)
        files[f"configs/{name}"] = json.dumps(found).encode()

    return attack


def metadata(change):
    return config(change, "metadata.json")


def width(value):
    """What the network is built with, so that it is evaluated as soon as anything is."""
    return config(lambda c: c["network_def"].update({"width": value}))


RUNS = {
    "call of the system": (width({"_target_": "os.system", "command": "touch $CANARY"}), "_target_ 'os.system' is not"),
    "network that is none": (config(lambda c: c.update(network_def={"_target_": "os.system", "command": "touch $CANARY"})), "_target_ 'os.system' is not"),
    "dunder import": (width(f"${PAYLOAD}"), "uses the attribute 'system', which is not on the list"),
    "builtins": (width(f"$__builtins__['eval'](\"{PAYLOAD}\")"), "__builtins__"),
    "lambda": (width(f"$(lambda: {PAYLOAD})()"), "holds a Lambda"),
    "f-string": (width(f"$f\"{{{PAYLOAD}}}\""), "holds a JoinedStr"),
    "comprehension": (width(f"$[{PAYLOAD} for a in (1,)]"), "holds a ListComp"),
    "walrus": (width(f"$(a := {PAYLOAD})"), "holds a NamedExpr"),
    "keyword": (width(f"$dict(a={PAYLOAD})"), "holds a keyword"),
    "class of a value": (width("$[].__class__.__base__.__subclasses__()[0].__init__ and " + PAYLOAD), "__class__"),
    "eval": (width(f"$eval(\"{PAYLOAD}\")"), "uses 'eval'"),
    "import of ours": (width("$monai.utils.module.import_module('os').system('touch $CANARY')"), "uses the attribute 'system'"),
    "as its target": (width({"_target_": f"${PAYLOAD}"}), "is not on the list"),
    "as a requirement": (config(lambda c: c["network_def"].update(_requires_=f"${PAYLOAD}")), "'_requires_' is no key"),
    "to disable it": (config(lambda c: c["network_def"].update(_disabled_=f"${PAYLOAD}")), "argument '_disabled_' of"),
    "behind a reference": (config(lambda c: (c.update(a=f"${PAYLOAD}"), c["network_def"].update(width="@a"))), "a: "),
    "in the metadata": (lambda files: (metadata(lambda m: m.update(authors=f"${PAYLOAD}"))(files), width("@_meta_::authors")(files)), "authors: "),
    "under a deeper key": (config(lambda c: c.update({"network_def::width": f"${PAYLOAD}"})), "'network_def::width' is no key"),
}  # fmt: skip
"""Code that runs as soon as the network is built; the static check is all that is between."""


def of_an_evil_object():
    class Evil:
        def __reduce__(self):
            return os.system, ("touch $CANARY",)

    return Evil()


def saved(state, **how):
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


def state_of(files):
    return torch.load(io.BytesIO(files[STATE]), weights_only=True)


def pickled(files):
    files[STATE] = saved({**state_of(files), "evil": of_an_evil_object()})


def pickled_without_zip(files):
    files[STATE] = pickle.dumps(of_an_evil_object())


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[STATE])) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    files[STATE] = buffer.getvalue()


def weights(change, *, both=True):
    def attack(files):
        state = state_of(files)
        change(state, next(name for name in sorted(state) if state[name].ndim > 2))
        files[STATE] = saved(state)
        if both:
            files[SAFE] = safetensors.torch.save(state)

    return attack


def expected(change):
    def attack(files):
        with np.load(io.BytesIO(files["reference/expected.npz"])) as old:
            arrays = dict(old)
        change(arrays)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        files["reference/expected.npz"] = buffer.getvalue()

    return attack


def about(change):
    def attack(files):
        found = json.loads(files["reference/reference.json"])
        change(found)
        files["reference/reference.json"] = json.dumps(found).encode()

    return attack


def bomb_in_the_reference(files):
    """A zip in the zip: 128 MB of zeros, in chunks that the outer zip cannot make smaller."""
    expected(lambda arrays: arrays.update(labels=np.zeros(2**27, np.uint8)))(files)


def lying_array(files):
    """An array of 8 TB, says its header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, file.open("labels.npy", "w") as array:
        np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    files["reference/expected.npz"] = buffer.getvalue()


def gzip_bomb(files):
    files["reference/image.nii.gz"] = gzip.compress(bytes(2**27))
    about(lambda a: a.update(image="reference/image.nii.gz"))(files)


def code_in_logging(files):
    files["configs/logging.conf"] = files["configs/logging.conf"].replace(
        b"args=(sys.stdout,)", f"args=({PAYLOAD},)".encode()
    )


def future(package):
    return metadata(lambda m: m["required_packages_version"].update({package: "9.0.0"}))


OF_THE_CONTENTS = {
    "import": (config(lambda c: c["imports"].append("$import os")), "configs", "'$import os' is no import on the list"),
    "import under our name": (config(lambda c: c["imports"].append("$from os import system as load_weights")), "configs", "no import on the list"),
    "import in the metadata": (metadata(lambda m: m.update(task="$import antigravity")), "configs", "would be taken for an expression"),
    "debugger": (config(lambda c: c["network_def"].update(_mode_="debug")), "configs", "'_mode_' is no key"),
    "breakpoint": (config(lambda c: c["network_def"].update(_debug_=True)), "configs", "'_debug_' is no key"),
    "code to initialise": (config(lambda c: c["initialize"].append(f"${PAYLOAD}"), "train.json"), "configs", "configs/train.json: initialize#3: "),
    "code to finalise": (config(lambda c: c.update(finalize=[f"${PAYLOAD}"]), "evaluate.json"), "configs", "configs/evaluate.json: finalize#0: "),
    "hook of the loader": (config(lambda c: c["train"]["dataloader"].update(collate_fn="$len"), "train.json"), "configs", "argument 'collate_fn'"),
    "macro of another file": (config(lambda c: c.update(width="%/tmp/evil.json::a")), "configs", "is a macro"),
    "server": (config(lambda c: c.update(tracking_uri="https://example.org"), "train.json"), "configs", "tracking_uri: must be null"),
    "place of the site": (config(lambda c: c.update(output_dir="/etc")), "configs", "must be a path below bundle_root"),
    "way up": (config(lambda c: c.update(checkpoint="$@bundle_root + '/../../x'")), "configs", "leads out of the bundle's folder"),
    "key twice": (lambda f: f.update({"configs/train.json": b'{"epochs": 1, "epochs": 2}'}), "configs", "the key 'epochs' stands twice"),
    "evil.yaml": (lambda f: f.update({"configs/evil.yaml": b"a: $import os"}), "configs", "configs/evil.yaml: is no file of a release"),
    "train.yaml": (lambda f: f.update({"configs/train.yaml": b"a: $import os"}), "configs", "configs/train.yaml: is no file of a release"),
    "torch.py": (lambda f: f.update({"torch.py": b"import os"}), "configs", "torch.py: is no file of a release"),
    "another wheel": (lambda f: f.update({"wheels/torch-9-py3-none-any.whl": b""}), "configs", "is no file of a release"),
    "logging": (code_in_logging, "configs", "configs/logging.conf: is not the one that comes with every bundle"),
    "overtile of the future": (future("overtile"), "versions", "was made with overtile 9.0.0"),
    "torch of the future": (metadata(lambda m: m.update(pytorch_version="2.99.0")), "versions", "was made with torch 2.99.0"),
    "unknown package": (future("evil-package"), "versions", "needs evil-package, which is not installed here"),
    "no format": (metadata(lambda m: m.pop("network_data_format")), "metadata", "network_data_format: Field required"),
    "version without a change": (metadata(lambda m: m.update(version="7.0.0")), "metadata", "changelog says nothing of version 7.0.0"),
    "metadata twice": (lambda f: f.update({"configs/metadata.json": b'{"a": 1, "a": 1}'}), "metadata", "the key 'a' stands twice"),
    "pickle": (pickled, "weights", "loading it could run code"),
    "bare pickle": (pickled_without_zip, "weights", "not a readable file of weights"),
    "packed weights": (packed, "weights", "is compressed"),
    "other weights in one file": (weights(lambda s, n: s[n].add_(1), both=False), "weights", "differ in"),
    "a weight more": (weights(lambda s, n: s.update(more=torch.ones(1))), "weights", "does not fit the network"),
    "another shape": (weights(lambda s, n: s.update({n: s[n].flatten()})), "weights", "does not fit the network"),
    "NaN": (weights(lambda s, n: s[n].fill_(float("nan"))), "weights", "holds what is no number"),
    "huge network": (width(10**4), "weights", "does not fit the network"),
    "no safetensors": (lambda f: f.update({SAFE: b"\xff" * 100}), "weights", "not a readable file of weights"),
    "other weights in both": (weights(lambda s, n: s[n].mul_(-1)), "reference case", "is not reproduced on cpu"),
    "other expectation": (expected(lambda a: a.update(probabilities=1 - a["probabilities"])), "reference case", "is not reproduced on cpu"),
    "expectation of NaN": (expected(lambda a: a.update(probabilities=a["probabilities"] * np.nan)), "reference case", "is not reproduced on cpu"),
    "expected objects": (expected(lambda a: a.update(labels=np.array([of_an_evil_object()]))), "reference case", "cannot be"),
    "boundless tolerance": (about(lambda a: a.update(tolerance={"cpu": 1.0})), "reference case", "allows a difference of more than 0.05"),
    "image of the site": (about(lambda a: a.update(image="../../../../etc/passwd")), "reference case", "not the release's own"),
    "zip in the zip": (bomb_in_the_reference, "reference case", "unpacks to more than 64 MiB"),
    "array that lies": (lying_array, "reference case", "unpacks to more than 64 MiB"),
    "image that expands": (gzip_bomb, "reference case", "unpacks to more than 64 MiB"),
} | {name: (attack, "configs", sentence) for name, (attack, sentence) in RUNS.items()}  # fmt: skip


# --- the tests ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def good(released):
    """The files of a good release."""
    with zipfile.ZipFile(released) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


@pytest.fixture
def canary(monkeypatch, tmp_path):
    """The file that a payload would write."""
    path = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(path))
    return path


@pytest.fixture
def refusal(released, canary, tmp_path):
    """Which check refuses a zip, and its sentence; nothing may have run, nothing may be left."""

    def verified(data):
        path = tmp_path / f"{NAME}-0.3.0.zip"
        path.write_bytes(data)
        with pytest.raises(verify.RefusalError) as refused:
            verify.verify(path, key=released.parent / "site.pub", into=tmp_path / "into")
        assert not canary.exists()
        assert not (tmp_path / "into").exists()
        last = refused.value.checks[-1]
        assert not last.passed
        assert last.sentence in str(refused.value)
        return last.name, last.sentence

    return verified


@pytest.fixture
def site_key(released):
    return signing.private_key(released.parent / "site.key")


def attacked(good, attack, key=None):
    files = dict(good)
    attack(files)
    if key:
        sealed(files, key)
    return zipped(files)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", OF_THE_ZIP)
def test_zips_that_do_harm(refusal, released, name):
    attack, sentence = OF_THE_ZIP[name]
    check, said = refusal(attack(released.read_bytes()))
    assert check == "unpacking"
    assert sentence in said


@pytest.mark.parametrize("name", OF_THE_SEAL)
def test_changes_after_the_signature(refusal, good, name):
    attack, check, sentence = OF_THE_SEAL[name]
    found, said = refusal(attacked(good, attack))
    assert found == check
    assert sentence in said


@pytest.mark.parametrize("name", OF_THE_CONTENTS)
def test_evil_contents_with_the_right_signature(refusal, good, site_key, name):
    attack, check, sentence = OF_THE_CONTENTS[name]
    found, said = refusal(attacked(good, attack, site_key))
    assert found == check, said
    assert sentence in said


def test_the_corpus_is_large_enough():
    assert len(OF_THE_ZIP) + len(OF_THE_SEAL) + len(OF_THE_CONTENTS) >= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_without_the_static_check_the_payload_runs(good, site_key, canary, released, tmp_path, monkeypatch, name):
    """The attacks are real."""
    monkeypatch.setattr(restricted, "problems", lambda folder: iter(()))
    path = tmp_path / f"{NAME}-0.3.0.zip"
    path.write_bytes(attacked(good, RUNS[name][0], site_key))
    with contextlib.suppress(verify.RefusalError):  # some would even go unnoticed
        verify.verify(path, key=released.parent / "site.pub", into=tmp_path / "into")
    assert canary.exists()


def test_the_pickles_are_real(good, canary):
    for attack in (pickled, pickled_without_zip):
        files = dict(good)
        attack(files)
        torch.load(io.BytesIO(files[STATE]), weights_only=False) if attack is pickled else pickle.loads(files[STATE])
        assert canary.exists()
        canary.unlink()


def test_an_unsigned_release_that_is_trusted_is_still_looked_at(good, canary, tmp_path):
    """Trust overrides what fails, and says what that was."""
    files = dict(good)
    RUNS["dunder import"][0](files)
    (tmp_path / "a.zip").write_bytes(zipped(files))
    found = verify.verify(tmp_path / "a.zip", key=None, into=tmp_path / "into", trust="a test of trust")
    failed = [check.name for check in found.checks if not check.passed]
    assert failed[:3] == ["digests", "signature", "configs"]
    assert canary.exists()  # whoever says so runs it


def test_openssl_refuses_what_we_refuse(released, good, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    files = dict(good)
    signed_by_a_stranger(files)
    (tmp_path / SUMS).write_bytes(files[SUMS])
    (tmp_path / SIGNATURE).write_bytes(files[SIGNATURE])
    words = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", released.parent / "site.pub"]
    done = subprocess.run(
        [*words, "-in", tmp_path / SUMS, "-sigfile", tmp_path / SIGNATURE], capture_output=True, check=False
    )
    assert done.returncode != 0


# --- each check, taken away -----------------------------------------------------------------------------------------

WITHOUT = {
    "digests": (release_checks, "digests", lambda folder: "", OF_THE_SEAL["changed byte"][0], False),
    "signature": (release_checks, "signature", lambda folder, key: "", OF_THE_SEAL["changed byte and sums"][0], False),
    "metadata": (release_checks, "metadata", lambda folder: "", OF_THE_CONTENTS["no format"][0], True),
    "versions": (release_checks, "versions", lambda folder: "", OF_THE_CONTENTS["overtile of the future"][0], True),
    "configs": (restricted, "problems", lambda folder: iter(()), OF_THE_CONTENTS["server"][0], True),
    "weights": (release_contents, "weights", lambda folder: "", OF_THE_CONTENTS["packed weights"][0], True),
    "reference case": (release_contents, "reference", lambda folder, device: "", OF_THE_CONTENTS["other weights in both"][0], True),
    "expansion": (unpacking, "MOST_EXPANSION", 10**9, None, None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("check", WITHOUT)
def test_every_check_is_needed(good, site_key, released, tmp_path, monkeypatch, check):
    """With one check taken away, an attack that is meant for it is not refused any more, or by a later check."""
    module, name, nothing, attack, signed = WITHOUT[check]
    data = OF_THE_ZIP["bomb by expansion"][0](released.read_bytes())
    if attack:
        data = attacked(good, attack, site_key if signed else None)
    (tmp_path / "a.zip").write_bytes(data)
    words = {"key": released.parent / "site.pub", "into": tmp_path / "into"}
    with pytest.raises(verify.RefusalError) as refused:
        verify.verify(tmp_path / "a.zip", **words)
    expected_check = "unpacking" if check == "expansion" else check
    assert refused.value.checks[-1].name == expected_check
    monkeypatch.setattr(module, name, nothing)
    try:
        verify.verify(tmp_path / "a.zip", **words)
    except verify.RefusalError as later:
        assert later.checks[-1].name != expected_check
