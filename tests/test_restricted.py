"""The static check lets our own bundles through and nothing else, without evaluating anything."""

import json
import shutil
import sys

import pytest

from pipeline import allowed, restricted
from tests.conftest import ROOT
from tests.stand_in import expanded

BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))


def test_the_list_is_what_our_bundles_use():
    assert restricted.LIST.read_text() == allowed.dumps(allowed.collected(BUNDLES)), (
        "a bundle has changed: run python -m pipeline.allowed bundles/*, and look at what it adds"
    )


def test_the_list_holds_nothing_that_runs_code_or_reads_elsewhere():
    listed = restricted.allowed()
    names = {*listed.targets, *listed.imports, *listed.calls}
    assert all(name.split(".")[0] in ("monai", "torch", "pipeline") or name.startswith("builtins.") for name in names)
    assert {name for name in names if name.startswith("builtins.")} == {"builtins.len", "builtins.min"}
    assert not {name.split(".")[-1] for name in names} & {"load", "eval", "exec", "run", "system", "getattr", "open"}
    arguments = {argument for arguments in listed.targets.values() for argument in arguments}
    assert not arguments & {
        "collate_fn",
        "worker_init_fn",
        "hash_func",
        "prepare_batch",
        "func",
        "other",
        "_mode_",
        "_requires_",
    }
    how_to_compute = {"amp", "channels_last", "compile", "fused", "pinned", "workers"}
    assert set(listed.attributes) == {"label_values", "parameters", "run", "to"} | how_to_compute


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("expanded")
    return {folder.name: expanded(folder, home / folder.name) for folder in BUNDLES}


@pytest.mark.parametrize("name", [folder.name for folder in BUNDLES])
def test_our_own_bundles_pass(made, name):
    assert list(restricted.problems(made[name])) == []


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made["chest_xray_segmentation"], tmp_path / "chest_xray_segmentation")


def problems_after(copy, change, name="inference.json"):
    path = copy / "configs" / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return "\n".join(restricted.problems(copy))


def value(text, key="width"):
    return lambda config: config.update({key: text})


EVIL = {
    "target": (value({"_target_": "os.system", "command": "id"}), "'os.system' is not on the list"),
    "target in a list": (value([[{"_target_": "os.system"}]]), "'os.system' is not on the list"),
    "short target": (value({"_target_": "LoadImaged"}), "'LoadImaged' is not on the list"),
    "evaluated target": (value({"_target_": "$@network.forward"}), "_target_ '$@network.forward' is not on the list"),
    "referred target": (value({"_target_": "@width"}), "_target_ '@width' is not on the list"),
    "target that is no text": (value({"_target_": {"a": 1}}), "_target_ {'a': 1} is not on the list"),
    "argument": (lambda c: c["network_def"].update(hook="$x"), "argument 'hook' of pipeline.networks.network is not"),
    "debugger": (lambda c: c["network_def"].update(_mode_="debug"), "'_mode_' is no key"),
    "callable": (lambda c: c["network_def"].update(_mode_="callable"), "'_mode_' is no key"),
    "breakpoint": (lambda c: c["network_def"].update(_debug_=True), "'_debug_' is no key"),
    "requires": (lambda c: c["network_def"].update(_requires_="$x()"), "'_requires_' is no key"),
    "disabled": (lambda c: c["network_def"].update(_disabled_="$evil()"), "uses 'evil'"),
    "dunder import": (value("$__import__('os').system('id')"), "uses '__import__', which is not on the list"),
    "builtins": (value("$__builtins__['eval']('1')"), "uses '__builtins__'"),
    "class": (value("$@network.__class__"), "uses the attribute '__class__'"),
    "class of a call": (value("$len('').__class__"), "uses the attribute '__class__'"),
    "method": (value("$@network.share_memory()"), "uses the attribute 'share_memory'"),
    "torch's own loader": (value("$torch.load('a.pt', weights_only=False)"), "uses 'torch.load'"),
    "a module of torch": (value("$torch.hub"), "uses 'torch.hub'"),
    "a function as a value": (value("$len"), "uses 'len'"),
    "numpy": (value("$np.load('a.npy', None, True)"), "uses 'np.load'"),
    "monai": (value("$monai.bundle.download('a')"), "uses 'monai.bundle.download'"),
    "lambda": (value("$lambda: 1"), "holds a Lambda"),
    "f-string": (value("$f'{1}'"), "holds a JoinedStr"),
    "comprehension": (value("$[1 for a in @class_names]"), "holds a ListComp"),
    "generator": (value("$len(a for a in @class_names)"), "holds a GeneratorExp"),
    "walrus": (value("$(a := 1)"), "holds a NamedExpr"),
    "star": (value("$len(*@class_names)"), "holds a Starred"),
    "keyword": (value("$len(a=1)"), "holds a keyword"),
    "dict": (value("${'_target_': 'os.system'}"), "holds a Dict"),
    "power": (value("$9 ** 9 ** 9"), "holds a Pow"),
    "repetition": (value("$'a' * 999999999"), "holds a Mult"),
    "matrix product": (value("$@width @ @width"), "is no expression"),
    "subscript": (value("$@class_names[0]"), "uses [] for something else"),
    "called subscript": (value("$@network(1)"), "calls what is no name"),
    "sum": (value("$@class_names + '/etc/passwd'"), "uses + for something else than a path"),
    "bytes": (value("$b'a'"), "holds a bytes"),
    "import outside of imports": (value("$import os"), "'$import os' is no expression"),
    "two statements": (value("$import os; len('')"), "is no expression"),
    "new line": (value("$len(\n'')"), "characters that no expression needs"),
    "look-alike letters": (value("$\uff4f\uff53.system('id')"), "characters that no expression needs"),
    "long": (value("$" + "(" * 5000 + "1" + ")" * 5000), "has 10002 characters"),
    "nested": (value("$" + "(" * 99 + "1" + ")" * 99), None),
    "code in a text": (value("$len('$__import__')"), "makes code of a text"),
    "resolved content": (value("$len(__local_refs)"), "uses '__local_refs'"),
    "resolved import": (value("$__local_refs['imports::0'].run()"), "uses [] for something else"),
    "an import's value": (value("@imports::0"), "'@imports::0' is no reference"),
    "the metadata": (value("@_meta_::version"), "'@_meta_::version' is no reference"),
    "the whole config": (value("$@.run()"), "uses [] for something else"),
    "relative": (value("@##width"), "no reference to a key"),
    "relative within a text": (value("see @#a"), "is a macro or a relative reference"),
    "macro": (value("%configs/train.json::epochs"), "is a macro"),
    "macro of another file": (value("%/tmp/evil.yaml"), "is a macro"),
    "import": (lambda c: c["imports"].append("$import os"), "'$import os' is no import on the list"),
    "import of a part": (lambda c: c["imports"].append("$import pipeline.dicom"), "is no import on the list"),
    "import under another name": (lambda c: c["imports"].append("$import torch as t"), "is no import on the list"),
    "two imports": (lambda c: c["imports"].append("$import torch, os"), "is no import on the list"),
    "two import statements": (lambda c: c["imports"].append("$import torch; import os"), "is no import on the list"),
    "relative import": (lambda c: c["imports"].append("$from . import evil"), "is no import on the list"),
    "expression as import": (lambda c: c["imports"].append("$len('')"), "is no import on the list"),
    "imports as a mapping": (lambda c: c.update(imports={"a": "$import os"}), "imports: is no import"),
    "imports in a list": (lambda c: c["imports"].append(["$import os"]), "['$import os'] is no import on the list"),
    "shadowed name": (lambda c: c["imports"].append("$from os import system as len"), "is no import on the list"),
    "merged": (lambda c: c.update({"+imports": ["$import os"]}), "'+imports' is no key"),
    "deeper key": (lambda c: c.update({"network_def::_target_": "os.system"}), "'network_def::_target_' is no key"),
    "metadata in a config": (lambda c: c.update(_meta_={"a": "$import os"}), "'_meta_' is no key"),
    "nested metadata": (lambda c: c["network_def"].update(_meta_={"a": "$evil()"}), "uses 'evil'"),
    "server": (value("http://example.org", "tracking_uri"), "tracking_uri: must be null"),
    "root": (value("/", "bundle_root"), "bundle_root: must be '.'"),
    "no root": (lambda c: c.pop("bundle_root"), "bundle_root: must be '.'"),
    "absolute": (value("/etc", "output_dir"), "output_dir: '/etc' must be a path below bundle_root"),
    "no folder": (value("", "output_dir"), "output_dir: '' must be a path below bundle_root"),
    "up": (value("$@bundle_root + '/../x'", "checkpoint"), "leads out of the bundle's folder"),
    "up from a text": (value("../x"), "'../x' leads out of the bundle's folder"),
    "home": (value("~/x"), "'~/x' leads out of the bundle's folder"),
    "address": (value("https://example.org"), "leads out of the bundle's folder"),
    "backslash": (value("..\\x"), "leads out of the bundle's folder"),
    "absolute path in a call": (value("$read('/etc/passwd')"), "leads out of the bundle's folder"),
    "store": (lambda c: c.update(h={"_target_": "pipeline.tracking.TrackingHandler", "store": "databricks"}), "argument 'store' of pipeline.tracking.TrackingHandler must be '@tracking_uri'"),
}  # fmt: skip


@pytest.mark.parametrize("attack", EVIL)
def test_what_is_on_no_list(copy, attack):
    change, sentence = EVIL[attack]
    found = problems_after(copy, change)
    assert found == "" if sentence is None else sentence in found


@pytest.mark.parametrize("attack", [name for name, (_, sentence) in EVIL.items() if sentence])
def test_every_place_of_a_config_is_looked_at(copy, attack):
    """The same in a list of mappings, deep inside of the training."""
    change, sentence = EVIL[attack]
    config = {"bundle_root": ".", "imports": [], "network_def": {"_target_": "pipeline.networks.network"}}
    change(config)
    if set(config) - {"bundle_root", "imports", "network_def", "width", "h"} or "must be" in sentence:
        pytest.skip("is about a key of the top")
    if config["imports"]:
        pytest.skip("is about imports")
    inside = {key: config[key] for key in ("network_def", "width", "h") if key in config}
    found = problems_after(copy, lambda c: c["train"]["handlers"].append({"a": [inside]}), "train.json")
    assert "train#handlers#" in found
    assert sentence in found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(task="$import os"), "task: '$import os' would be taken for an expression"),
        (lambda m: m.update(authors=["a", "@network"]), "authors#1: '@network' would be taken for"),
        (lambda m: m.update(changelog={"1": "% of"}), "changelog#1: '% of' would be taken for"),
        (lambda m: m.update(segments={"_target_": "os.system"}), "segments: has a key that means something else"),
        (lambda m: m.update(_meta_={"a": 1}), "metadata: has a key that means something else"),
        (lambda m: m["changelog"].update({"a::b": ""}), "changelog: has a key that means something else"),
    ],
)
def test_metadata_are_a_config_too(copy, change, sentence):
    assert sentence in problems_after(copy, change, "metadata.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b"[]", "holds no mapping"),
        (b'{"a": 1, "a": 2}', "is no JSON: the key 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', "is no JSON: the key 'b' stands twice"),
        (b'{"a": NaN}', "is no JSON: NaN is no number"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is no JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b" " * 2**20 + b"{}", "has more than 1048576 bytes"),
        (b'\xff\xfe{"a": 1}', "is no JSON"),
    ],
)
def test_what_is_no_config(copy, content, sentence):
    (copy / "configs" / "train.json").write_bytes(content)
    assert f"configs/train.json: {sentence}" in "\n".join(restricted.problems(copy))


def test_a_missing_config(copy):
    (copy / "configs" / "evaluate.json").unlink()
    assert list(restricted.problems(copy)) == ["configs/evaluate.json: is missing"]


@pytest.mark.parametrize(
    "name",
    ["torch.py", "configs/evil.yaml", "configs/train.yaml", "configs/more.json", "scripts/__init__.py", "wheels/torch-9.whl",
     "reference/image.npy", "models/model.pkl", "overtile.pth", ".hidden"],
)  # fmt: skip
def test_stray_files(copy, name):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("")
    assert list(restricted.problems(copy)) == [f"{name}: is no file of a release"]


def test_logging_is_ours_or_absent(copy):
    conf = copy / "configs" / "logging.conf"
    conf.write_text(conf.read_text().replace("(sys.stdout,)", "(sys.stderr,)"))
    [problem] = restricted.problems(copy)
    assert "configs/logging.conf: is not the one" in problem
    conf.unlink()
    assert list(restricted.problems(copy)) == []


def test_nothing_is_imported(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline.networks", None)  # any import of it would fail now
    found = problems_after(copy, lambda c: c["imports"].append("$import antigravity"))
    assert "antigravity" in found
    assert "antigravity" not in sys.modules
