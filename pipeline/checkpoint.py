"""Weights and training state on disk: written atomically, loaded without running pickled code."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from pipeline import processes
from pipeline.atomic import atomic
from pipeline.configuration import differences, flattened, pathless, running_config
from pipeline.digests import file_digest
from pipeline.errors import InputError
from pipeline.manifest import read
from pipeline.provenance import STARTED_FROM, training_record
from pipeline.state_files import existing, read_state

logger = logging.getLogger("pipeline.checkpoint")

PREVIOUS = "previous_"
"""How the name of a checkpoint begins that an earlier training left."""

MAY_CHANGE = (
    "bundle_root", "cache_gb", "dataset_dir", "device", "distributed", "engine", "experiment", "log_model", "manifest",
    "memory_gb", "output_dir", "parent_run", "pinned", "resume", "tile", "tracking_uri", "workers",
)  # fmt: skip
"""Keys that a resume may give otherwise: where it runs and where its files lie. The manifest's digest is compared."""

MODEL, TRAINING, SETTINGS = "model", "training", "settings"
"""The parts of a file of weights: the `state_dict`, what it was trained on, and the settings it was trained with."""

WEIGHTS_DEPEND_ON = (
    "class_names", "in_channels", "spatial_dims", "size", "encoder", "width", "depth", "padding", "norm", "act", "down",
    "up", "head",
)  # fmt: skip
"""Keys of a bundle that must be the same wherever its weights are used; most do not show in the weights' shapes."""

NULL = "$None"
"""What an override must say to MONAI for null."""


class SaveBest:
    """A handler of the validation engine: writes the network's weights whenever its key metric is a new best.

    Args:
        network: whose `state_dict` is written.
        path: of the file.
        manifest: of the training, whose digests go with the weights.
        start_from: file of the weights that the training started from, whose digest goes with them too; or None.
        config: the merged configuration; None looks up the one that the bundle is being run with.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str,
        *,
        manifest: str,
        start_from: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.path = Path(path)
        self.training = _trained_on(manifest, start_from)
        self.settings = settings_of_weights(running_config() if config is None else config)

    def attach(self, engine: Engine) -> None:
        """Follow an engine's epochs."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the weights if this epoch is the best one."""
        if processes.is_first() and engine.state.best_metric_epoch == engine.state.epoch:  # type: ignore[attr-defined]
            save_weights(self.network, self.training, self.path, self.settings)


class TrainingState:
    """The whole state of a training, from one file and back into it: a resumed training is the one that was stopped.

    When it is built with `resume`, network, optimizer and the other objects take over the file's state at once; as
    a handler of the training engine it puts the engine and its validation where they were.

    Args:
        path: of the file, `last.pt`.
        objects: name -> what has a `state_dict` (network, optimizer, scheduler, ...).
        evaluator: the validation engine, whose best metric and epoch belong to the state.
        manifest: whose digest must not change between stop and resume.
        resume: go on from the file.
        start_from: file of the weights that the training starts from, or None; its content must not change either.
        config: the merged configuration; None looks up the one that the bundle is being run with.

    Raises:
        InputError: there is nothing to resume, the file is broken, or it is from another training: another
            manifest, other weights to start from, or another configuration.
    """

    def __init__(
        self,
        path: str,
        objects: Mapping[str, Any],
        evaluator: Engine,
        *,
        manifest: str,
        resume: bool = False,
        start_from: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.objects = objects
        self.evaluator: Any = evaluator
        self.training = _trained_on(manifest, start_from)
        config = running_config() if config is None else dict(config)
        self.config = flattened(pathless(config))
        self.settings = settings_of_weights(config)
        self.run_id = ""
        self.history: dict[str, list[tuple[int, float]]] = {}  # of the training's metrics, for its curves
        self.saved: dict[str, Any] = {}
        self._lock: Any = None
        if resume:
            self.saved = self._loaded()
        elif self.path.is_file():
            self._refuse_to_start_over()

    def attach(self, engine: Engine) -> None:
        """Put an engine where the file left off; stands before every handler that asks where it is."""
        engine.add_event_handler(Events.STARTED, self._restore)

    def gather(self, engine: Engine) -> dict[str, Any]:
        """The state to write: tensors, numbers and text only."""
        metric = self.evaluator.state.best_metric
        parts = {name: part.state_dict() for name, part in self.objects.items()}
        return parts | {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best_metric": metric.item() if hasattr(metric, "item") else metric,
            "best_metric_epoch": self.evaluator.state.best_metric_epoch,
            "validated_epoch": self.evaluator.state.epoch,
            TRAINING: self.training,
            "config": self.config,
            "config_sha256": hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest(),
            "run_id": self.run_id,
            "history": self.history,
            "finished": engine.state.epoch >= (engine.state.max_epochs or 0) or bool(engine.should_terminate),
        }

    def lock(self) -> None:
        """Keep other processes of this machine out of the folder until `unlock`, or until this process ends.

        Raises:
            InputError: another one is training there.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.with_name(f".{self.path.name}.lock").open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by a loader's workers
        except (BlockingIOError, PermissionError):
            file.close()
            raise InputError(
                f"{self.path.parent}: another process is training there; wait for its end, or give another `output_dir`"
            ) from None
        self._lock = file

    def unlock(self) -> None:
        """Let others in again."""
        if self._lock is not None:
            self._lock.close()

    def how_to_resume(self) -> str:
        """A sentence for the user of a training that has stopped before its end."""
        saved = read_state(self.path) if self.path.is_file() else {}
        if saved.get("run_id") != self.run_id:
            return "nothing to resume: it stopped before its first checkpoint"
        epoch = saved["epoch"]
        if epoch == 0:
            return "it stopped before the end of its first epoch; the same command starts it again"
        return f"epoch {epoch} is saved in {self.path}; to go on from there, give the same command with --resume True"

    def _loaded(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise InputError(f"{self.path}: no training to resume here; leave `resume` out to start one")
        saved = read_state(self.path)
        if not {"epoch", "config", "run_id", TRAINING, *self.objects} <= saved.keys():
            raise InputError(f"{self.path}: not the state of a training that can be resumed; start a new one")
        if not self._is_of_this_manifest(saved):
            raise InputError(
                f"{self.path}: the manifest has changed since this training began; a resumed training sees the same "
                "cases: give that manifest, or start a new training in another folder"
            )
        if not self._starts_alike(saved):
            raise InputError(
                f"{self.path}: the weights that this training began from have changed; give `start_from` the same file "
                "to resume it, or start a new training in another folder"
            )
        changed = differences(pathless(saved["config"]), self.config, but=MAY_CHANGE)
        if changed:
            raise InputError(
                f"{self.path}: is from a training with other settings ({'; '.join(changed[:3])}); give the same ones "
                "to resume it, or start a new training in another folder"
            )
        for name, part in self.objects.items():
            part.load_state_dict(saved[name])
        self.run_id = saved["run_id"]
        self.history = saved.get("history", {})
        return saved

    def _is_of_this_manifest(self, saved: Mapping[str, Any]) -> bool:
        return bool(saved.get(TRAINING, {}).get("manifest_sha256") == self.training["manifest_sha256"])

    def _starts_alike(self, saved: Mapping[str, Any]) -> bool:
        before, now = (record.get(STARTED_FROM, {}) for record in (saved.get(TRAINING, {}), self.training))
        return bool(before.get("sha256") == now.get("sha256"))

    def _refuse_to_start_over(self) -> None:
        """The same command again after a stop, without `resume`: most likely forgotten, and it would cost the weights.

        Raises:
            InputError: the file is the unfinished state of this very training.
        """
        try:
            saved = read_state(self.path)
        except InputError:
            return  # broken, so nothing is lost by setting it aside
        same = (self._is_of_this_manifest(saved) and self._starts_alike(saved)) and not differences(
            pathless(saved.get("config", {})), self.config, but=MAY_CHANGE
        )
        if same and saved["epoch"] > 0 and not saved["finished"]:
            raise InputError(
                f"{self.path}: epoch {saved['epoch']} of {saved['max_epochs']} of this training is saved here; add "
                "--resume True to go on with it, or give another `output_dir`, or remove the file, to start over"
            )

    def _restore(self, engine: Engine) -> None:
        if self.saved:
            for name in ("epoch", "iteration", "max_epochs"):
                setattr(engine.state, name, self.saved[name])
            self.evaluator.state.best_metric = self.saved["best_metric"]
            self.evaluator.state.best_metric_epoch = self.saved["best_metric_epoch"]
            self.evaluator.state.epoch = self.saved["validated_epoch"]
            logger.info("resumed after epoch %d of %d", engine.state.epoch, engine.state.max_epochs)


class SaveLast:
    """A handler of the training engine: writes its whole state before the first epoch and after every one.

    When a training starts anew, the checkpoints of an earlier one in the same folder are set aside as
    `previous_*.pt`: nobody evaluates them by mistake for the new ones. Stands last.

    Args:
        state: what to write, and where.
        network: whose weights alone are kept every `every` epochs, as `epoch_0010.pt` beside the state.
        every: epochs; None keeps no such files.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, state: TrainingState, network: torch.nn.Module, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"`save_every` must be at least 1 epoch or null, got {every!r}")
        self.state = state
        self.network = network
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Follow an engine's epochs."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        if self.state.saved or not processes.is_first():
            return
        folder = self.state.path.parent
        for old in [self.state.path, folder / "model.pt", *folder.glob("epoch_*.pt")]:
            if old.is_file():
                old.replace(old.with_name(PREVIOUS + old.name))
                logger.info("%s of an earlier training is now %s%s", old, PREVIOUS, old.name)
        save(self.state.gather(engine), self.state.path)

    def __call__(self, engine: Engine) -> None:
        """Write the state."""
        if not processes.is_first():
            return
        epoch = engine.state.epoch
        if self.every is not None and epoch % self.every == 0:
            path = self.state.path.with_name(f"epoch_{epoch:04d}.pt")
            save_weights(self.network, self.state.training, path, self.state.settings)
        save(self.state.gather(engine), self.state.path)


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a state atomically: a crash leaves the previous file."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(state), file)  # to a path, it would say nothing of a full disk


def save_weights(
    network: torch.nn.Module, training: Mapping[str, Any], path: Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write a network's weights, what they were trained on (`pipeline.provenance`) and with which settings.

    They are contiguous however the network holds them.
    """
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save({MODEL: weights, TRAINING: dict(training), SETTINGS: dict(settings or {})}, path)


def settings_of_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """What weights depend on, of a merged configuration: plain values; an expression is left out, it has none yet."""
    found = {key: _plain(config[key]) for key in WEIGHTS_DEPEND_ON if key in config}
    return {key: value for key, value in found.items() if not str(value).startswith(("$", "@", "%"))}


def _plain(value: Any) -> Any:
    """The same however it was given: null as MONAI's expression, a list as a tuple."""
    return None if value == NULL else json.loads(json.dumps(value, default=str))


def training_of(path: str | Path) -> dict[str, Any] | None:
    """What the weights in a file were trained on; None where the file does not say.

    Raises:
        InputError: the file is missing or is no checkpoint.
    """
    training = existing(Path(path)).get(TRAINING)
    return dict(training) if isinstance(training, Mapping) else None


def _trained_on(manifest: str, start_from: str | None) -> dict[str, Any]:
    """What goes with the weights of a training, with what is known of those that it starts from."""
    record = training_record(read(manifest))
    if start_from is None:
        return record
    return record | {STARTED_FROM: (training_of(start_from) or {}) | {"sha256": file_digest(Path(start_from))}}


def standing(path: Path) -> str:
    """How far a training has come whose state is in a file: `new`, `begun` (an epoch is done) or `finished`."""
    try:
        saved = read_state(path)
    except InputError:
        return "new"  # none, or broken: there is nothing to go on from
    return "finished" if saved.get("finished") else "begun" if saved.get("epoch") else "new"


def load_weights(
    network: torch.nn.Module, path: str | Path, config: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """Load weights into a network, from a file of ours or a bare `state_dict`; returns the network.

    Args:
        network: as it is configured.
        path: of the file.
        config: the merged configuration; None looks up the one that the bundle is being run with. Where the file says
            with which settings the weights were trained, these must be the same.

    Raises:
        InputError: the file is missing, is no checkpoint, belongs to a network of another shape, or was trained with
            other settings.
    """
    state = existing(Path(path))
    if "network" in state and "optimizer" in state:
        raise InputError(f"{path}: is the state of a training; the weights to use are beside it, in model.pt")
    was = state.get(SETTINGS)
    was = was if isinstance(was, Mapping) else {}
    now = settings_of_weights(running_config() if config is None else config)
    changed = [key for key in now if key in was and was[key] != now[key]]
    as_trained = " ".join(f"--{key} {_word(was[key])}" for key in changed)
    try:
        network.load_state_dict(state[MODEL] if isinstance(state.get(MODEL), Mapping) else state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"{path}: holds the weights of another network than the one configured ({reason}); "
            + (f"give {as_trained}" if changed else "give the same network keys (`width`, `depth`, ...) as in training")
        ) from None
    if changed:
        differ = ", ".join(f"`{key}` was {_shown(was[key])}, is {_shown(now[key])}" for key in changed)
        raise InputError(f"{path}: these weights were trained with other settings ({differ}); give {as_trained}")
    return network


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _word(value: Any) -> str:
    return shlex.quote(_shown(value))
