"""The image's files, without building it: `docker/smoke_test.sh` does that."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
README = (DOCKER / "README.md").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SCRIPTS = sorted(DOCKER.rglob("*.sh"))
SMOKE_TEST = "".join(path.read_text() for path in SCRIPTS if "smoke" in str(path.relative_to(DOCKER)))
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))


def run_tool(name, *arguments):
    """Run a checker that is installed beside this Python or on the PATH; skip where it is not."""
    tool = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if tool is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def assert_clean(done):
    assert done.returncode == 0, done.stdout + done.stderr


def subcommands():
    from typer.main import get_command

    from pipeline.cli import app

    return set(get_command(app).commands)


def test_dockerfile_is_clean():
    assert_clean(run_tool("hadolint", DOCKER / "Dockerfile"))


def test_scripts_are_clean():
    parts = [path for path in SCRIPTS if path.parent.name != "smoke"]  # those are read where smoke_test.sh sources them
    assert len(parts) == 4
    assert_clean(run_tool("shellcheck", "--external-sources", *parts))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert_clean(run_tool("bash", "-n", script))


@pytest.mark.parametrize("compose", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_files_follow_the_specification(compose):
    assert_clean(run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose))


def test_specification_refuses_a_misspelt_key(tmp_path):
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text((DOCKER / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", misspelt)
    assert done.returncode == 1
    assert "readonly" in done.stdout


@pytest.mark.parametrize("name", ["retrain", "overtile", "review"])
def test_compose_services_are_confined(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] <= 512
    assert service["mem_limit"]
    assert service["pull_policy"] == "never"
    assert f"USER {service['user']}" in DOCKERFILE


@pytest.mark.parametrize("name", ["retrain", "overtile"])
def test_compose_gives_studies_no_network(name):
    service = COMPOSE["services"][name]
    assert service["network_mode"] == "none"
    assert service["shm_size"]
    assert [volume.split("}:")[1] for volume in service["volumes"]] == ["/data:ro", "/release:ro", "/out"]


def test_compose_gives_the_page_no_studies():
    page = COMPOSE["services"]["review"]
    assert [volume.split("}:")[1] for volume in page["volumes"]] == ["/out"]
    assert page["ports"] == ["127.0.0.1:${REVIEW_PORT:-5000}:5000"]
    (network,) = page["networks"]
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert COMPOSE["networks"][network]["driver_opts"] == {masquerade: "false"}


def test_a_gpu_is_added_to_what_trains_and_changes_nothing_else():
    services = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert services.keys() == {"retrain", "overtile"}
    for service in services.values():
        assert service.keys() == {"deploy"}


def test_compose_retrains_in_the_images_own_words():
    words = json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    assert COMPOSE["services"]["retrain"]["command"] == [*words, "--hours", "${HOURS:-8}"]
    assert words[0] in subcommands()


def test_label_says_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]


def test_compose_reviews_as_the_smoke_test_does():
    words = " ".join(COMPOSE["services"]["review"]["command"]).replace("/${RUN:-}", "")
    assert words.split()[0] in subcommands()
    assert f"\n        {words}\n" in SMOKE_TEST


def test_the_pages_health_check_is_a_program_that_can_fail():
    how, python, c, program = COMPOSE["services"]["review"]["healthcheck"]["test"]
    assert (how, python, c) == ("CMD", "python", "-c")
    elsewhere = program.replace(", 5000,", ", 9,")  # nothing answers on the port of `discard`
    assert run_tool("python", c, elsewhere).returncode == 1


def test_copied_paths_exist_and_reach_the_build():
    allowed = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = [path for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()]
    copied += [f"docker/{name}" for name in ("prune.sh", "requirements-cpu.lock", "requirements-cuda.lock")]
    assert "bundles" in copied
    assert "pipeline" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in allowed


@pytest.mark.parametrize("kept_out", ["data", "docker/work", ".git", ".venv"])
def test_the_build_sees_nothing_else(kept_out):
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert f"!{kept_out}" not in lines


def test_health_check_is_a_command_on_a_bundle_that_is_there():
    command, bundle = re.search(r'CMD \["overtile", "(\w+)", "(\w+)"\]', DOCKERFILE).groups()
    assert command in subcommands()
    assert (ROOT / "bundles" / bundle).is_dir()
    assert f"BUNDLE={bundle}\n" in SMOKE_TEST


def test_base_image_has_a_python_that_the_package_takes():
    from packaging.specifiers import SpecifierSet

    version = re.search(r"^ARG BASE_IMAGE=docker\.io/library/python:([\d.]+)-slim-\w+$", DOCKERFILE, re.MULTILINE)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version in SpecifierSet(project["requires-python"])


def blocks_of_commands():
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]


def test_every_command_in_the_readme_exists():
    used = set(re.findall(r"^overtile (\w+)|run --rm overtile (\w+)|run --rm retrain (\w+)", README, re.MULTILINE))
    used = {word for words in used for word in words if word}
    assert used >= {"index", "split", "audit", "run", "evaluate", "predict", "verify", "retrain"}
    assert used <= subcommands()


def test_ten_commands_lead_from_the_tar_to_the_page_and_the_smoke_test_runs_them():
    first = blocks_of_commands()[0].splitlines()
    assert len(first) == 10
    assert first[-1].startswith("docker compose up review")
    assert f'grep -c . "$NOW/commands" | grep -x {len(first) - 1}' in SMOKE_TEST
    for named in ("/media/usb", "/srv/studies", "/srv/retraining"):
        assert any(named in line for line in first)
        assert f"s#{named}#" in SMOKE_TEST


def test_the_command_without_compose_confines_as_compose_does():
    plain = next(block for block in blocks_of_commands() if block.startswith("docker run"))
    batch = COMPOSE["services"]["retrain"]
    assert f"--network {batch['network_mode']} --read-only --tmpfs {batch['tmpfs'][0]} " in plain
    assert f"--cap-drop {batch['cap_drop'][0]} --security-opt no-new-privileges " in plain
    assert f"--pids-limit {batch['pids_limit']} --memory 16g --shm-size {batch['shm_size']}" in plain
    flat = plain.replace("docker run", "$engine run").replace("$DATA", "\\$DATA").replace("$OUT", "\\$OUT").split()
    assert " ".join(flat) in " ".join((DOCKER / "site" / "install.sh").read_text().replace("\\\\", "\\").split())


def test_every_file_in_the_readme_exists():
    for path in re.findall(r"docker/[\w./-]+\.(?:yaml|sh|lock)|docker/Dockerfile", README):
        assert (ROOT / path).is_file(), path


def test_readme_shows_the_end_of_the_smoke_test():
    shown = re.findall(r"^ok    (.+?)(?: \(\d+ s\))?$", README, re.MULTILINE)
    assert len(shown) > 3
    for what in shown:
        assert f'"{what}"' in SMOKE_TEST.replace("$OWNER", "10001"), what
    checks = len(re.findall(r"^(?:must|check) \"", SMOKE_TEST, re.MULTILINE))
    assert f"It makes {checks} checks" in README
