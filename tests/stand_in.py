"""A release's configs of every bundle, without a training: enough for those who read them."""

import shutil

from pipeline.expand import dumps, release_configs


def expanded(folder, target):
    """The bundle at `folder` as a release has it, without weights and digests."""
    (target / "configs").mkdir(parents=True)
    for name in ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/logging.conf"):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    for name, config in release_configs(folder, {}).items():
        (target / "configs" / name).write_text(dumps(config))
    return target
