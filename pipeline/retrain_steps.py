"""The steps of a retraining, each of which is done once however often the command is given."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from pipeline import bundle as bundles
from pipeline import gate, gate_pairs, gate_simulation, manifest, release, retrain_data, retrain_plan, sealed, verify
from pipeline.atomic import atomic
from pipeline.digests import file_digest
from pipeline.errors import DataError, InputError
from pipeline.gate_rule import Rule
from pipeline.heartbeat import reconcile
from pipeline.indexing import planned
from pipeline.journal import journals
from pipeline.manifest import Finding, Manifest
from pipeline.progress import Progress, silent
from pipeline.retrain_models import FailedTrainingError, Models
from pipeline.retrain_plan import Plan
from pipeline.retrain_record import Release, Result
from pipeline.retrain_registry import register_deployed, tell_verdict
from pipeline.retrain_story import Say, Story
from pipeline.retrain_verdict import changelog, screened
from pipeline.store import open_store, reason, sqlite_store
from pipeline.sync import sync
from pipeline.told_child import Ended

UNPACKED, DECISION, KEY, SEALED = "release", "gate.json", "overtile_release.key", "sealed"
"""In the folder of a retraining: the deployed release, the gate's decision, the key that signs where none is given, and
the evaluations of the sealed patients."""

MANIFEST, RECIPE, EXPERIMENT, REGISTERED = "manifest_sha256", "recipe_sha256", "experiment", "registered"
"""What the record keeps beside what a page is made of: two digests, the name under which MLflow has the model, and
whether it knows the deployed one."""

THERE = "releases_there"
"""Likewise: releases that lay in the folder before this retraining made its own."""

FAILED = (
    "The fine-tuning failed, so there is no new model: {}. The sealed patients were not opened, and the deployed model "
    "stays."
)
"""Why a retraining is refused whose training diverged."""

Start = Callable[[Sequence[str], Sequence[int]], Ended]
"""Words after `overtile`, and the descriptors that the child keeps open -> how it ended."""


@dataclass(frozen=True)
class Hands:
    """What a retraining works with.

    Attributes:
        run: starts a child process.
        say: told what happens, line by line.
        show: told the findings of the audit.
        progress: told about every file.
    """

    run: Start
    say: Say
    show: Callable[[Sequence[Finding]], None] = lambda _: None
    progress: Progress = silent


class Steps:
    """The steps in their order; each looks up in the story whether it was done before.

    Args:
        plan: what the command was given.
        hands: what does the work.
        story: where the retraining stands.
        rule: of the gate, fixed.
        lock: descriptor of the folder's lock, which children keep.
    """

    def __init__(self, plan: Plan, hands: Hands, story: Story, rule: Rule, lock: int) -> None:
        self.plan = plan
        self.hands = hands
        self.story = story
        self.rule = rule
        self.record = story.record
        self.file = plan.out / retrain_plan.MANIFEST
        self.store = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_store(plan.out)
        self.run = lambda words: hands.run(words, [lock])
        self.models: Models

    def open_release(self) -> None:
        """Unpack and verify the release, each time anew: in between, somebody may have touched what was unpacked."""
        plan = self.plan
        self._end_abandoned()
        with self.story.step("verify"):
            found = self._verified()
            told = {name: getattr(found, name) for name in ("name", "version", "sha256", "signer", "trust")}
            self.record.release = Release(**told, checks=[asdict(check) for check in found.checks])
            retrain_plan.check_overrides(plan, found.folder)
        known = bundles.settings(found.folder, "training")
        self.story.about[EXPERIMENT] = str(plan.overrides.get("experiment") or known.get("experiment") or found.name)
        self.models = Models(plan, found.folder.absolute(), self.store, self.run)

    def divide(self) -> None:
        """Index, audit and divide; whatever goes wrong before the patients are divided, all three are done anew."""
        plan, story = self.plan, self.story
        fields = retrain_plan.recipe_fields(plan, self.models.bundle)
        digest = retrain_plan.recipe_digest(fields)
        if story.done("split"):
            retrain_plan.refuse_if_changed({"recipe": story.about[RECIPE]}, {"recipe": digest}, plan.out)
            if manifest.read(self.file).digest() != story.about[MANIFEST]:
                raise InputError(f"{self.file}: was changed after the patients were divided; restore it")
        else:
            self._index(fields)
            self._split(self._audited(), digest)
        story.cases = [case for _, case in manifest.read(self.file).cases()]

    def score_deployed(self) -> None:
        """How good the deployed model is here, and how many sealed patients a decision will take."""
        if not self.story.done("deployed"):
            with self.story.step("deployed"):
                table = self._validation("deployed")
                self.record.deployed_validation = gate_pairs.means(table)
                self.record.needed = gate.needed(table, self.rule, have=self._sealed()).as_json()
        self.hands.say((self.record.needed or {})["sentence"])
        if not self.story.about.get(REGISTERED):
            bundle, weights = self.models.bundle, self.models.deployed
            version = self.record.release.version if self.record.release else ""
            about: dict[str, Any] = {"version": version, "evaluation": self._validation("deployed")}
            self.story.about[REGISTERED] = self._told(
                partial(register_deployed, self.store, self._model_name(), bundle, weights, **about)
            )

    def train(self) -> None:
        """Fine-tune within the hours given."""
        if self.story.done("training"):
            return
        resumed, begun = self.story.begun("training"), time.monotonic()
        with self.story.step("training"):
            try:
                self.models.train()
            except FailedTrainingError as error:
                self.story.end(Result(verdict="refused", reason=FAILED.format(error)))
                return
            trained = self.models.trained()
            trained.minutes = None if resumed else (time.monotonic() - begun) / 60
            self.record.training = trained

    def screen(self) -> None:
        """What validation says: the sealed patients are opened only for a model that looks better there."""
        if not self.story.done("validation"):
            with self.story.step("validation"):
                new, deployed = self._validation("new"), self._validation("deployed")
                self.record.new_validation = gate_pairs.means(new)
                self.record.screen = screened(new, deployed, self.rule)
                differences = gate_pairs.differences(new, deployed)
                self.record.simulation = gate_simulation.simulated(differences, self.rule, sealed=self._sealed())
        if not (self.record.screen or {})["passed"]:
            self.story.end(Result(verdict="refused", reason=(self.record.screen or {})["reason"]))

    def decide(self) -> None:
        """Open the sealed patients, decide, and make the release if the new model is accepted."""
        models, folder = self.models, self.plan.out.absolute() / SEALED
        cut_off = self.story.begun("gate")
        opened = self.story.done("gate")
        with self.story.step("gate"):
            scored = models.scored(models.deployed, "test", folder / "deployed")
            if not opened or not scored or not models.scored(models.new, "test", folder / "new"):
                self._open(cut_off or opened)
                retrain_data.require_unchanged(manifest.read(self.file).partition("test"), self.plan.data)
            deployed = models.evaluation(models.deployed, "test", folder / "deployed")
            new = models.evaluation(models.new, "test", folder / "new")
            decision = gate.decide(new, deployed, self.rule, fixed_sha256=self.record.rule_sha256)
            self.record.decision = decision.as_json()
            with atomic(self.plan.out / DECISION) as temporary:
                temporary.write_text(json.dumps(self.record.decision, indent=1) + "\n", encoding="utf-8")
        made = self._release(decision, new) if decision.verdict == "accepted" else None
        self.story.end(Result(verdict=decision.verdict, reason=decision.reason, release=made))

    def tell_registry(self) -> None:
        """Move `champion` and `candidate`; what MLflow could not be told is tried again by the next same command."""
        result = self.record.result
        if result is None or self.story.done("aliases") or not self.plan.new_weights.is_file():
            return
        version = result.release.removesuffix(".zip").rpartition("-")[2] if result.release else None
        about: dict[str, Any] = {"verdict": result.verdict, "reason": result.reason, "version": version}
        with self.story.step("aliases"):
            told = self._told(partial(tell_verdict, self.store, self._model_name(), self.plan.new_weights, **about))
        if not told:
            self.record.steps.pop("aliases")
            self.story.save()

    def _end_abandoned(self) -> None:
        """Send what an earlier process could not, and mark as KILLED what it left RUNNING: the lock says so.

        A server has runs of others too, and may be silent: that is for `overtile sync`.
        """
        if self.store != sqlite_store(self.plan.out):
            return
        for journal in journals(self.plan.out):
            with suppress(InputError):  # its process still lives
                sync(journal)
        if (self.plan.out / "mlflow.db").is_file():
            with suppress(Exception):  # every command that opens the store does so too, later
                reconcile(open_store(self.store), alone=True)

    def _verified(self) -> verify.Verified:
        plan = self.plan
        shutil.rmtree(plan.out / UNPACKED, ignore_errors=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        how: dict[str, Any] = {"trust": plan.trust, "device": device, "progress": self.hands.progress}
        try:
            return verify.verify(plan.release, key=plan.key, into=plan.out / UNPACKED, **how)
        except verify.RefusalError as error:
            self.record.release = Release(checks=[asdict(check) for check in error.checks])
            raise

    def _index(self, fields: Mapping[str, Any]) -> None:
        plan, say = self.plan, self.hands.say
        with self.story.step("index"):
            recipe = planned(plan.data, fields, str(retrain_plan.recipe_source(plan, self.models.bundle)))
            with atomic(plan.out / retrain_plan.RECIPE) as temporary:
                temporary.write_text(retrain_plan.as_yaml(fields), encoding="utf-8")
            if plan.previous is not None:
                sealed.carried(plan.previous, plan.out)
                self.record.openings = sealed.openings(plan.out)
            key = retrain_data.pseudonym_key(recipe, plan.out, plan.previous)
            how: dict[str, Any] = {"key": key, "previous": plan.previous, "progress": self.hands.progress}
            found, told = retrain_data.index(plan.data, recipe, plan.out, **how)
            self.record.index = told
            self.story.cases = [case for _, case in found.cases()]
            for refused in told.refused:
                say(f"left out: {refused.what} ({refused.reason})")
            say(f"{told.cases} cases of {told.patients} patients")
            retrain_data.require_labels(found)

    def _audited(self) -> Manifest:
        """The manifest as it is going to be divided: a leak shows only then."""
        plan = self.plan
        with self.story.step("audit"):
            found = manifest.read(self.file)
            divided = retrain_data.split(found, self.rule, fractions=plan.fractions, seed=plan.seed)
            self.record.audit, findings = retrain_data.audit(divided, plan.data, plan.out, self.hands.progress)
            self.hands.show(findings)
            if errors := [finding for finding in findings if finding.severity == "error"]:
                rules = ", ".join(sorted({finding.rule for finding in errors}))
                raise DataError(
                    f"{len(errors)} errors in the data ({rules}), which stand above; correct them and give the same "
                    "command again"
                )
            retrain_data.require_distinct(divided)
            return divided

    def _split(self, divided: Manifest, recipe: str) -> None:
        with self.story.step("split"):
            manifest.write(divided, self.file)
            retrain_data.require_fit(self.file, self.plan.data, self.models.bundle)
            self.story.about.update({MANIFEST: divided.digest(), RECIPE: recipe})
            parts = self.record.split = retrain_data.told_split(divided)
            self.hands.say(
                f"{parts.training.patients} patients train, {parts.validation.patients} validate, "
                f"{parts.sealed.patients} are sealed until the gate"
            )

    def _open(self, cut_off: bool) -> None:
        """Write the opening down before anything of the sealed patients is read."""
        patients = {case.patient for case in manifest.read(self.file).partition("test")}
        sealed.opened(
            self.plan.out,
            deployed_sha256=file_digest(self.models.deployed),
            new_sha256=file_digest(self.models.new),
            rule_sha256=self.rule.digest(),
            patients=len(patients),
            resumed=cut_off,
            sealed_sha256=sealed.digest(patients),
        )
        self.record.openings = sealed.openings(self.plan.out)
        self.story.save()

    def _release(self, decision: gate.Decision, evaluation: Mapping[str, Any]) -> str:
        out, name = self.plan.out, self.models.bundle.name
        if self.story.begun("release"):  # it was cut off, maybe after the file was there: it is made again
            for made in out.glob(f"{name}-*.zip"):
                if made.name not in self.story.about[THERE]:
                    made.unlink()
        else:
            self.story.about[THERE] = sorted(path.name for path in out.glob(f"{name}-*.zip"))
        with self.story.step("release"):
            key = self.plan.sign or out / KEY
            if not key.exists():
                self.hands.say(f"no --sign: {key} is made to sign with; who checks the release needs its .pub")
            made = release.release(
                self.models.bundle,
                self.plan.new_weights.parent,
                out,
                key=key,
                changelog=changelog(self.record),
                evaluation=evaluation,
                recipe=out / retrain_plan.RECIPE,
                gate=decision.aggregates(),
            )
        return made.name

    def _validation(self, which: str) -> dict[str, Any]:
        weights = {"deployed": self.models.deployed, "new": self.models.new}[which]
        return self.models.evaluation(weights, "validation", self.plan.out.absolute() / which)

    def _sealed(self) -> int:
        return self.record.split.sealed.patients if self.record.split else 0

    def _model_name(self) -> str:
        """Under which the registry knows this model: a training registers itself by its experiment."""
        return str(self.story.about[EXPERIMENT])

    def _told(self, tell: Callable[[], None]) -> bool:
        """Tell MLflow something; a retraining does not end because it cannot be told."""
        try:
            tell()
        except Exception as error:  # MLflow, its drivers, the network and torch.export each raise their own
            self.hands.say(
                f"MLflow could not be told ({type(error).__name__}: {reason(error)}); nothing else depends on it"
            )
            return False
        return True
