"""A release's folder, made by hand: what `release` writes, as far as those who read one are concerned."""

import contextlib
import json
import shutil

from monai.bundle import ConfigParser

from pipeline import bundle
from pipeline.config_check import walk


def expanded(folder, target):
    """The bundle at `folder` as a release has it: configs in JSON, macros expanded, full names."""
    (target / "configs").mkdir(parents=True)
    for name in ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/logging.conf"):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    for name in ("train", "evaluate", "inference"):
        parser = ConfigParser()
        with contextlib.chdir(folder):
            parser.read_config(f"configs/{name}.yaml")
            parser.resolve_macro_and_relative_ids()
        config = {key: value for key, value in parser.config.items() if key != "_meta_"}
        for _, value in walk(config):
            if isinstance(value, dict) and "." not in value.get("_target_", "."):
                value["_target_"] = bundle._monai_component(value["_target_"])
        if name == "train":
            config["manifest"] = "$@bundle_root + '/data/manifest.json'"
        if name == "evaluate":
            config["manifest"] = "$@bundle_root + '/data/manifest.json'"
        (target / "configs" / f"{name}.json").write_text(json.dumps(config, indent=1))
    return target
