"""The story of a retraining: whatever stops it, the same command ends where it would have ended; and every plain no."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipeline import bundle, retrain_data, retrain_plan, retrain_steps, sealed, verify
from pipeline.digests import file_digest
from pipeline.errors import DataError, InputError, user_error
from pipeline.gate_rule import Rule
from pipeline.heartbeat import HEARTBEAT, PROCESS
from pipeline.manifest import Case, Manifest, read
from pipeline.outbox import Outbox
from pipeline.phantom import write_em_patients
from pipeline.release import release
from pipeline.retrain import retrain
from pipeline.retrain_data import require_distinct, shares
from pipeline.retrain_plan import Plan
from pipeline.retrain_record import RetrainRecord
from pipeline.retrain_steps import Hands
from pipeline.retrain_story import Story, locked
from pipeline.store import find_run, sqlite_store
from pipeline.told_child import Ended, refuse
from tests.conftest import ROOT, run_overtile
from tests.test_training import kill_after

PATIENTS = 8
TINY = {"epochs": 2, "patch": 64, "patches_per_case": 4, "workers": 0, "learning_rate": 0.003, "log_model": False}


def in_process(words, keep=()):
    """A child's work without the seconds that a process takes to start."""
    _, folder, workflow, *rest = words
    try:
        bundle.run(Path(folder), workflow, bundle.parse_overrides(rest))
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        return Ended(mistake.exit_code, (f"error: {mistake}",))
    return Ended(0)


def hands(said=None, run=in_process):
    return Hands(run=run, say=(said if said is not None else []).append)


def as_before(finished, training=None, new="new"):
    """Children that leave what those of `finished` left, in no time; `training` is how the fine-tuning ends."""

    def run(words, keep=()):
        given = bundle.parse_overrides(words[3:])
        target = Path(given["output_dir"])
        if words[2] == "training" and training is not None:
            return training
        source = finished[0].out / str(target).partition("/out/")[2]
        source = source.with_name(new) if source.name == "new" else source
        target.mkdir(parents=True, exist_ok=True)
        for name in ("evaluation.json", "model.pt", "last.pt"):
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        if new != "new" and target.name == "new":
            told = json.loads((target / "evaluation.json").read_text())
            model = finished[0].new_weights
            (target / "evaluation.json").write_text(json.dumps(told | {"checkpoint_sha256": file_digest(model)}))
        return Ended(0)

    return run


@pytest.fixture(scope="session")
def small(phantom_manifest, empty_store, tmp_path_factory):
    """A release like `released`, of a network so small that every step is a matter of seconds."""
    home = tmp_path_factory.mktemp("small")
    (home / "run").mkdir()
    shutil.copy(empty_store, home / "run" / "mlflow.db")
    given = TINY | {"width": 4, "depth": 3, "manifest": str(phantom_manifest), "output_dir": str(home / "run")}
    bundle.run(bundle.find("neuron_em_segmentation"), "training", given)
    how = {"key": home / "site.key", "version": "0.3.0"}
    return release(bundle.find("neuron_em_segmentation"), home / "run", home, **how)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder of studies with its recipe, and a rule that 3 patients can satisfy."""
    folder = tmp_path_factory.mktemp("site")
    write_em_patients(folder / "data", patients=PATIENTS, sections=1, size=64, seed=7)
    lines = ["name: phantom_site", "image: '{patient}/image.tif'", "label: '{patient}/label.tif'"]
    (folder / "data" / "recipe.yaml").write_text("\n".join([*lines, "classes: {cell: 255, membrane: 0}"]) + "\n")
    (folder / "rule.yaml").write_text("minimum_patients: 3\nmargin: 0.5\n")
    return folder


@pytest.fixture
def plan(small, site, empty_store, tmp_path, monkeypatch, verified):
    """A retraining into an empty folder, whose release is not verified anew at every start."""
    monkeypatch.setattr(retrain_steps.verify, "verify", verified)
    return planned(small, site, empty_store, tmp_path / "out")


def planned(small, site, empty_store, out):
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    (out / "overtile.key").write_text("the key of a site, of which everybody here knows\n")
    key, rule = small.with_name("site.pub"), site / "rule.yaml"
    return Plan(release=small, data=site / "data", out=out, key=key, rule=rule, overrides=TINY)


@pytest.fixture(scope="session")
def verified(small, tmp_path_factory):
    """Stands for `verify.verify`: what it found once, the folder copied."""
    home = tmp_path_factory.mktemp("verified")
    found = verify.verify(small, key=small.with_name("site.pub"), into=home)

    def again(_, *, into, **how):
        shutil.copytree(found.folder, into / found.name)
        return replace(found, folder=into / found.name)

    return again


@pytest.fixture(scope="session")
def finished(small, site, empty_store, verified, tmp_path_factory):
    """A retraining that nothing stopped: its plan, its record, and what it said."""
    plan, said = planned(small, site, empty_store, tmp_path_factory.mktemp("finished") / "out"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrain_steps.verify, "verify", verified)
        plan = replace(plan, overrides=TINY | {"log_model": True})
        return plan, retrain(plan, hands(said)), said


def weights(plan):
    return torch.load(plan.new_weights, weights_only=True)["model"]


def decision(plan):
    return json.loads((plan.out / "gate.json").read_text())


def test_the_whole_story_ends_in_a_release(finished):
    plan, record, said = finished
    assert record.result.verdict == "accepted", record.result.reason
    assert record.result.release == "neuron_em_segmentation-0.3.1.zip"
    key = plan.out / "overtile_release.pub"
    found = verify.verify(plan.out / record.result.release, key=key, into=plan.out.parent / "again")
    assert (found.version, found.trust) == ("0.3.1", "")
    assert [line[0] for line in said if " of 8: " in line] == list("1223456678")
    assert "3 patients train, 1 validate, 4 are sealed until the gate" in said
    assert len(sealed.openings(plan.out)) == 1
    assert (plan.out / "report.html").is_file()
    assert record.rule_fixed_at <= record.steps["index"].started


def test_nothing_that_is_written_names_a_patient(finished):
    """The studies are called patient_1, ...; the manifest alone may say so."""
    plan, _, _ = finished
    names = [path.name.encode() for path in plan.data.iterdir() if path.is_dir()]
    assert len(names) == PATIENTS
    files = [path for path in plan.out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert not [path for path in files for name in names if name in path.read_bytes()]


def test_the_registry_knows_both_models(finished):
    from pipeline.store import open_store, sqlite_store

    plan, _, _ = finished
    client = open_store(sqlite_store(plan.out))
    (model,) = client.search_registered_models()
    assert model.aliases == {"candidate": 2, "champion": 2}
    deployed, new = (client.get_model_version(model.name, number) for number in ("1", "2"))
    assert deployed.tags["release"] == "0.3.0"
    assert (new.tags["release"], new.tags["gate"], new.tags["previous_champion"]) == ("0.3.1", "accepted", "version 1")


class Kill(BaseException):
    """As kill -9: no handler of ours sees it."""


def test_killed_after_every_step_it_ends_as_if_never_stopped(finished, plan, monkeypatch):
    whole, seen, save = finished[0], set(), Story.save

    def stop(story):
        save(story)
        point = tuple((name, step.finished is not None) for name, step in story.record.steps.items())
        if (point, story.ended) not in seen:
            seen.add((point, story.ended))
            raise Kill

    monkeypatch.setattr(Story, "save", stop)
    record = None
    while record is None:
        with suppress(Kill):
            record = retrain(plan, hands(run=as_before(finished)))
    assert len(seen) > 18  # begun and done, of ten steps
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(plan).items())
    assert decision(plan) == decision(whole)
    assert record.result == finished[1].result
    assert (plan.out / record.result.release).is_file()
    assert read(plan.out / "manifest.json") == read(whole.out / "manifest.json")
    assert [one.resumed for one in sealed.openings(plan.out)][:2] == [False, True]
    assert sealed.comparisons(sealed.openings(plan.out)) == 1


def test_the_same_command_again_says_the_same_and_other_arguments_are_refused(finished, site):
    plan, record, _ = finished
    before = (plan.out / "retrain.json").read_bytes()
    again = retrain(plan, hands(run=lambda *_: pytest.fail("nothing is left to do")))
    assert again.result == record.result
    moved = replace(plan, data=site / "data", seed=2)
    with pytest.raises(InputError, match="began otherwise .seed was 1, is 2.; give what it began with to go on"):
        retrain(moved, hands())
    with pytest.raises(InputError, match="rule was .*, is "):
        retrain(replace(plan, rule=None), hands())
    with pytest.raises(InputError, match="overrides was"):
        retrain(replace(plan, overrides=TINY), hands())
    assert (plan.out / "retrain.json").read_bytes() == before


def test_an_absurd_learning_rate_is_refused_and_the_patients_stay_sealed(finished, plan):
    diverged = Ended(1, ("error: the loss is nan in epoch 1, step 2, cases P-1: the steps are too long",))
    record = retrain(plan, hands(run=as_before(finished, training=diverged)))
    assert record.result.verdict == "refused"
    assert "The fine-tuning failed, so there is no new model: the loss is " in record.result.reason
    assert not (plan.out / "openings.jsonl").exists()
    assert not list(plan.out.glob("*.zip"))


def test_where_no_epoch_was_better_the_deployed_model_stays(finished, plan):
    record = retrain(plan, hands(run=as_before(finished, new="deployed")))
    assert record.result.verdict == "refused"
    assert "no epoch of the fine-tuning was better than the deployed model" in record.result.reason
    assert not (plan.out / "openings.jsonl").exists()


def test_what_a_killed_container_left_running_is_marked_at_once(plan):
    client = MlflowClient(sqlite_store(plan.out))
    run = client.create_run("0", tags={HEARTBEAT: str(time.time()), PROCESS: "a-container-that-is-gone:1:1"})
    unsent = Outbox(sqlite_store(plan.out), plan.out / "training")
    unsent.begin("test", "a", tags={}, environment={}, describe=lambda: unsent.json({"lr": 0.1}, "config.json"))
    unsent.close()
    with pytest.raises(DataError, match="killed"):
        retrain(plan, hands(run=lambda *_: Ended(-9)))
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    told = find_run(client, unsent.key)
    assert told.info.status == "KILLED"
    assert [file.path for file in client.list_artifacts(told.info.run_id)] == ["config.json"]


def test_one_image_under_two_patients_is_refused():
    one, other = (Case(id=name, patient=name, image=f"{name}.tif", pixels="a1") for name in ("p1", "p2"))
    again = one.model_copy(update={"id": "p1-2"})
    about = {"name": "n", "modality": {"0": "x"}, "labels": {"0": "a", "1": "b"}, "label_values": {"0": 0, "1": 1}}
    require_distinct(Manifest(**about, test=[one, again]))
    with pytest.raises(DataError, match="p1 and p2 have the same pixels and are of two patients"):
        require_distinct(Manifest(**about, test=[one, other]))


def test_with_too_few_sealed_patients_nothing_is_decided(finished, plan, tmp_path):
    said, rule = [], tmp_path / "strict.yaml"
    rule.write_text("minimum_patients: 20\nmargin: 0.5\n")
    strict = replace(plan, rule=rule, fractions=shares(PATIENTS, Rule(minimum_patients=3)))
    record = retrain(strict, hands(said, as_before(finished)))
    assert record.result.verdict == "not decidable", record.result.reason
    assert any("The rule asks for 20 at least; you have 4." in line for line in said)
    assert not list(plan.out.glob("*.zip"))


def test_patients_once_sealed_stay_sealed(finished, site, tmp_path, monkeypatch, verified):
    monkeypatch.setattr(retrain_steps.verify, "verify", verified)
    plan, _, _ = finished
    data = tmp_path / "data"
    shutil.copytree(site / "data", data)
    write_em_patients(tmp_path / "more", patients=PATIENTS + 3, sections=1, size=64, seed=8)
    for folder in sorted((tmp_path / "more").iterdir())[PATIENTS:]:
        shutil.copytree(folder, data / folder.name)
    out = tmp_path / "second"
    out.mkdir()
    second = replace(plan, out=out, data=data, previous=plan.out)
    with pytest.raises(DataError, match="killed"):
        retrain(second, hands(run=lambda *_: Ended(-9)))
    before, after = (read(folder / "manifest.json") for folder in (plan.out, out))
    assert {case.patient for case in before.test} <= {case.patient for case in after.test}
    assert {case.patient for case in before.training} <= {case.patient for case in after.training}
    assert len({case.patient for _, case in after.cases()}) == PATIENTS + 3
    assert [one.previous for one in sealed.openings(out)] == [True]


def test_errors_in_the_data_stop_it_and_mended_data_go_on(plan, site, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(site / "data", data)
    first, second = sorted(path for path in data.iterdir() if path.is_dir())[:2]
    kept = (second / "image.tif").read_bytes()
    for name in ("image.tif", "label.tif"):
        shutil.copyfile(first / name, second / name)  # one patient under two names
    with pytest.raises(DataError, match="errors in the data"):
        retrain(replace(plan, data=data), hands())
    record = RetrainRecord.model_validate_json((plan.out / "retrain.json").read_text())
    assert record.result.verdict == "stopped"
    assert record.audit.errors
    assert first.name not in (plan.out / "report.html").read_text()
    (second / "image.tif").write_bytes(kept)
    shutil.copyfile(site / "data" / second.name / "label.tif", second / "label.tif")
    killed = hands(run=lambda *_: Ended(-9))
    with pytest.raises(DataError, match="most likely for want of memory: give it more"):
        retrain(replace(plan, data=data), killed)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"release": Path("none.zip")}, "none.zip: no such release"),
        ({"release": Path()}, "is a folder; --bundle is the file"),
        ({"previous": Path("none")}, "none: no manifest.json in it; --previous is"),
        ({"data": Path("none")}, "none: no such folder; --data"),
        ({"hours": 0.0}, "--hours must be above 0"),
        ({"hours": 1.0}, "--hours and --epochs both say"),
        ({"overrides": {"manifest": "m.json"}}, "--manifest is set by this command"),
        ({"overrides": {"width": 8}}, "--width is the release's own"),
        ({"overrides": {"minutes": 8}}, "say --hours"),
        ({"sign": Path("none.key")}, "none.key: no such key to sign with"),
    ],
)
def test_wrong_use_is_told_before_anything_is_written(small, site, tmp_path, change, sentence):
    given = {"release": small, "data": site / "data", "out": tmp_path / "out", "overrides": {"epochs": 2}} | change
    with pytest.raises(InputError, match=sentence):
        retrain(Plan(**given), hands())
    assert not (tmp_path / "out").exists()


def test_an_unknown_override_and_a_tampered_release(plan, small, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no key 'epohcs' for training; did you mean 'epochs'"):
        retrain(replace(plan, overrides={"epohcs": 3}), hands())
    monkeypatch.undo()
    broken = tmp_path / "neuron_em_segmentation-0.3.0.zip"
    broken.write_bytes(small.read_bytes()[:-40])
    with pytest.raises(InputError):
        retrain(replace(plan, release=broken), hands())
    record = RetrainRecord.model_validate_json((plan.out / "retrain.json").read_text())
    assert (record.result.verdict, [check["passed"] for check in record.release.checks]) == ("stopped", [False])


def test_two_at_once(tmp_path):
    refused = pytest.raises(InputError, match="another retraining is at work there")
    with locked(tmp_path, print), refused, locked(tmp_path, print, seconds=0):
        pass
    with locked(tmp_path, print, seconds=0):
        pass


@pytest.mark.parametrize("minimum", [3, 20])
@pytest.mark.parametrize("patients", [3, 8, 39, 40, 44, 300])
def test_half_of_the_patients_are_left_and_the_rule_can_decide_where_that_is_so(patients, minimum):
    training, validation, test = shares(patients, Rule(minimum_patients=minimum))
    assert training + validation + test == pytest.approx(1)
    assert test <= 0.5
    assert training >= validation
    if patients >= 2 * minimum:
        assert test * patients >= minimum - 1e-9


def test_how_children_end():
    refuse(Ended(0), "it")
    for ended, kind, sentence in (
        (Ended(130), KeyboardInterrupt, "it was stopped"),
        (Ended(137), DataError, "it was killed, most likely for want of memory"),
        (Ended(2, ("x", "error: no such thing")), InputError, "^no such thing$"),
        (Ended(1, ("RuntimeError: DefaultCPUAllocator: can't allocate memory",)), DataError, "it ran out of memory"),
        (Ended(1, ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. insufficient shared memory",)),
         DataError, "it ran out of shared memory: give the container more"),
        (Ended(1, ("KeyError: 'x'",)), DataError, "it ended with exit code 1 .KeyError: 'x'.; the same command tries"),
    ):  # fmt: skip
        with pytest.raises(kind, match=sentence):
            refuse(ended, "it")


def test_the_command_prints_the_verdict_and_its_exit_code(finished, plan, capsys, monkeypatch):
    from pipeline import told_child

    monkeypatch.setattr(told_child, "run_told", as_before(finished, new="deployed"))
    overrides = [word for key, value in TINY.items() for word in (f"--{key}", value)]
    words = ["retrain", "--bundle", plan.release, "--key", plan.key, "--data", plan.data, "--out", plan.out, "--rule"]
    for _ in range(2):
        code, output = run_overtile([*words, plan.rule, *overrides], capsys, monkeypatch)
        assert code == 3
        assert "\nREFUSED: Refused on validation: no epoch" in output
        assert f"The report: {plan.out / 'report.html'}" in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_in_the_fine_tuning_and_at_the_gate(finished, small, site, empty_store, tmp_path):
    """The command itself, with children: killed twice, it makes the weights that were made without a stop."""
    whole, plan = finished[0], planned(small, site, empty_store, tmp_path / "out")
    words = ["--bundle", plan.release, "--key", plan.key, "--data", plan.data, "--out", plan.out, "--rule", plan.rule]
    words += [word for key, value in whole.overrides.items() for word in (f"--{key}", value)]
    line = [sys.executable, "-m", "pipeline", "retrain", *map(str, words)]
    for sign in ("epoch 1/2", "6 of 8: the gate"):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        kill_after(process, sign, 0.2)
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\nACCEPTED: " in ended.stdout
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(plan).items())
    assert decision(plan) == decision(whole)
    assert [one.resumed for one in sealed.openings(plan.out)] in ([False], [False, True])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_disk_ends_it_with_a_sentence(small, site, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        words = ["--bundle", small, "--key", small.with_name("site.pub"), "--data", site / "data", "--out"]
        line = [sys.executable, "-m", "pipeline", "retrain", *map(str, words), str(disk / "out"), "--epochs", "2"]
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (ended.returncode, "Traceback" in ended.stderr) in ((1, False), (2, False)), ended.stderr
    assert "No space left on device" in ended.stderr or "disk" in ended.stderr


def test_a_sealed_file_that_was_changed_is_refused(tmp_path):
    image = tmp_path / "a.tif"
    image.write_bytes(b"as indexed")
    case = Case(id="a", patient="p", image="a.tif", sha256=file_digest(image))
    retrain_data.require_unchanged([case], tmp_path)
    image.write_bytes(b"changed")
    with pytest.raises(
        DataError, match=r"a.tif: not the file that was indexed; put it back, or start again in another"
    ):
        retrain_data.require_unchanged([case], tmp_path)
    image.unlink()
    with pytest.raises(DataError, match=r"a.tif: is not there any more; put it back"):
        retrain_data.require_unchanged([case], tmp_path)


def test_studies_are_never_written_to(plan):
    with pytest.raises(InputError, match="which is only read; give another --out"):
        retrain_plan.check(replace(plan, out=plan.data / "out"))


def test_who_reads_the_sealed_patients_again_is_written_down_again(finished, tmp_path, monkeypatch, verified):
    monkeypatch.setattr(retrain_steps.verify, "verify", verified)
    out = tmp_path / "out"
    shutil.copytree(finished[0].out, out)
    plan = replace(finished[0], out=out)
    (made,) = out.glob("*.zip")
    record = json.loads((out / "retrain.json").read_text())
    for step in ("release", "aliases"):  # as if the release could not be made
        del record["steps"][step]
    record["result"] = None
    (out / "retrain.json").write_text(json.dumps(record))
    made.rename(out / made.name.replace(".zip", "_of_others.zip"))
    shutil.rmtree(out / "sealed" / "new")
    retrain(plan, hands(run=as_before(finished)))
    assert [one.resumed for one in sealed.openings(out)] == [False, True]
    assert len(list(out.glob("*.zip"))) == 2
