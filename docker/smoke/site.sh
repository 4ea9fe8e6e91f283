# shellcheck shell=bash
# A site without a network installs the tar and retrains, as docker/README.md says. Sourced by docker/smoke_test.sh.

offline() { unshare --net "$@"; }  # not even loopback is up

unpack() {  # the tar on the site's machine, whose engine has never seen the image
    mkdir "$NOW/site"
    tar -C "$NOW/site" -xf "$(echo "$NOW"/site-*.tar)"
    site=$(echo "$NOW"/site/site-*)
}

tampered_tar() {  # one byte of the release
    cp -al "$site" "$NOW/tampered"
    spoil "$NOW"/tampered/release/*.zip
    ends_with 2 'the files are not those that were packed' offline bash "$NOW/tampered/install.sh"
    rm -rf "$NOW/tampered"
}

spoil() {  # FILE: another byte in its middle; the file is replaced, other links to it keep theirs
    "$PYTHON" - "$1" <<'PYTHON'
import os
import sys

path = sys.argv[1]
with open(path, "rb") as file:
    content = bytearray(file.read())
content[len(content) // 2] ^= 1
os.unlink(path)
with open(path, "wb") as file:
    file.write(content)
PYTHON
}

install() {  # into a store of its own, which is empty
    store "$NOW/installed"
    [ -z "$(podman images --quiet)" ]
    ENGINE=podman offline bash "$site/install.sh"
    cp "$NOW/published/publisher.pub" "$site/release/"
    podman image exists "$IMAGE"
}

compose() {  # OUT WORDS...: `podman compose` in the site's folder; HOURS, MEMORY and DATA as a person would set them
    local out=$1
    shift
    OUT=$out DATA=${DATA:-$NOW/data} MEMORY=${MEMORY:-4g} offline \
        "$PYTHON" -m podman_compose --no-ansi --file "$site/compose.yaml" --podman-run-args=--no-healthcheck "$@"
}

retrain() {  # OUT WORDS...: compose's own words where there are no others
    compose "$1" run --rm -T retrain "${@:2}"
}

WORDS=(retrain --bundle /release/release.zip --key /release/publisher.pub --data /data --out /out --hours 0.1
    --rule /release/rule.yaml --epochs 4)
