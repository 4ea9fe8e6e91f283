"""Which inputs have been answered, with which weights and settings: what an archive's prediction goes on from.

Beside the answers stands a journal, `.answers.N.jsonl` of each process N. A line is added when an answer is complete;
it counts as long as the weights and settings, the input's files and the answer's files are those it was written for.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys

from pipeline import processes
from pipeline.certificate import certificate_path
from pipeline.configuration import flattened, pathless
from pipeline.jobs import Job, beside

JOURNAL = ".answers.{}.jsonl"

PLACES = ("bundle_root", "checkpoint", "device", "match", "output_dir", "resume", "source")
"""Keys of a configuration that do not change an answer. What the checkpoint holds is looked at."""

PROBABILITIES = ("_probabilities.tif", "_probabilities.nii.gz", "_probabilities.dcm")
"""How the names of an answer's further files end."""


class Answered:
    """The journal of a folder of answers.

    Args:
        output_dir: the folder.
        settings: from `settings_digest`.
    """

    def __init__(self, output_dir: Path, settings: str) -> None:
        self.output_dir = output_dir
        self.settings = settings
        lines = [line for path in sorted(output_dir.glob(JOURNAL.format("*"))) for line in _lines(path)]
        self.known = {
            (line["target"], line["source"], line["answer"]) for line in lines if line["settings"] == settings
        }

    def has(self, job: Job) -> bool:
        """Whether a job's answer is there and is what would be written now."""
        return self._line(job, source_digest(job)) in self.known

    def note(self, job: Job, source: str) -> None:
        """Note that an answer is complete.

        Args:
            job: answered.
            source: `source_digest` of before it was read.
        """
        target, source, answer = self._line(job, source)
        line = {"target": target, "source": source, "answer": answer, "settings": self.settings}
        with (self.output_dir / JOURNAL.format(processes.rank())).open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line) + "\n")  # the first ends a line that was cut off

    def _line(self, job: Job, source: str) -> tuple[str, str, str]:
        files = [job.target, certificate_path(job.target), *(beside(job.target, end) for end in PROBABILITIES)]
        return job.target.relative_to(self.output_dir).as_posix(), source, _stamps(files)


def settings_digest(network: torch.nn.Module, config: Mapping[str, Any], *further: object) -> str:
    """What an answer depends on beside its input: weights, configuration, and what `further` shows of itself."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    flat = {key: text for key, text in flattened(pathless(config)).items() if key.partition(".")[0] not in PLACES}
    found.update(json.dumps([flat, [repr(one) for one in further]], sort_keys=True).encode())
    return found.hexdigest()


def source_digest(job: Job) -> str:
    """Of the names, sizes and times of change of a job's files; of a header file, also of those called like it."""
    if job.kind == "series":
        folders = {Path(str(folder)) for folder in job.item[CommonKeys.IMAGE]}
        return _stamps(path for folder in sorted(folders) for path in sorted(folder.iterdir()))
    alike = job.source.parent.glob(glob.escape(job.source.stem) + ".*")
    return _stamps({job.source, *alike})


def _stamps(files: Iterable[Path]) -> str:
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files) if path.is_file()]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def _lines(path: Path) -> Iterator[dict[str, str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # empty, or cut off by a kill
        if isinstance(found, dict) and {"target", "source", "answer", "settings"} <= found.keys():
            yield found
