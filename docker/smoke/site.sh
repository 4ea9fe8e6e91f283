# shellcheck shell=bash
# A site without a network installs the tar, as docker/README.md says. Sourced by docker/smoke_test.sh.

offline() {  # COMMAND...: not even loopback is up; with TRACE, a file, every connection that is tried is written there
    local traced=()
    [ -z "${TRACE:-}" ] || traced=(strace --follow-forks --seccomp-bpf --trace=connect --output="$TRACE")
    "${traced[@]}" unshare --net "$@"
}

unpack() {
    mkdir "$NOW/unpacked"
    tar -C "$NOW/unpacked" -xf "$NOW"/site-*.tar
    mv "$NOW"/unpacked/site-* "$NOW/site"
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

tampered_tar() {  # one byte of the release
    cp -al "$NOW/site" "$NOW/tampered"
    spoil "$NOW"/tampered/release/*.zip
    ends_with 2 'the files are not those that were packed' offline bash "$NOW/tampered/install.sh"
    rm -rf "$NOW/tampered"
}

install() {  # into an engine that has never seen the image
    store "$NOW/installed"
    podman images --quiet | none .
    ENGINE=podman offline bash "$NOW/site/install.sh" | tee "$NOW/said"
    podman image exists "$IMAGE"
    cp "$NOW/published/publisher.pub" "$NOW/site/release/"
    [ "$(openssl pkey -pubin -in "$NOW/site/release/publisher.pub" -outform DER | sha256sum)" ]
}

compose() {  # WORDS...: `docker compose` in the site's folder; DATA, OUT, RELEASE, HOURS and MEMORY as a person sets them
    DATA=${DATA:-$NOW/data} OUT=${OUT:-$NOW/out} MEMORY=${MEMORY:-4g} offline "$PYTHON" -m podman_compose --no-ansi \
        --in-pod false --file "$NOW/site/compose.yaml" --podman-run-args=--no-healthcheck "$@"
}

retrain() { compose run --rm -T retrain "$@"; }  # compose's own words where there are no others
