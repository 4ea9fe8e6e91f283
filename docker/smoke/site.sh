# shellcheck shell=bash
# A site without a network installs the tar, as docker/README.md says. Sourced by docker/smoke_test.sh.

offline() {  # COMMAND...: not even loopback is up; with TRACE, a file, every connection that is tried is written there
    local traced=()
    [ -z "${TRACE:-}" ] || traced=(strace --follow-forks --seccomp-bpf --trace=connect --output="$TRACE")
    "${traced[@]}" unshare --net "$@"
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

docker_of_the_site() {  # a `docker` that is podman and podman-compose, since no Docker engine can be asked for here
    mkdir "$NOW/bin"
    cat >"$NOW/bin/docker" <<SCRIPT
#!/bin/bash
[ "\$1" != run ] || set -- run --no-healthcheck "\${@:2}"
[ "\$1" = compose ] || exec podman "\$@"
shift
[ "\$1" != run ] || { shift; set -- run -T "\$@"; }
exec "$PYTHON" -m podman_compose --no-ansi --in-pod false --podman-run-args=--no-healthcheck "\$@"
SCRIPT
    chmod +x "$NOW/bin/docker"
}

followed() {  # the page's first commands as they stand there, in an engine that has never seen the image
    podman images --quiet | none .
    mkdir "$NOW/arrived" "$NOW/usb"
    mv "$NOW"/site-*.tar "$NOW/arrived/"
    cp "$NOW/published/publisher.pub" "$NOW/usb/"
    sed -n '/^```sh$/,/^```$/p' "$REPO/docker/README.md" | sed '1d;/^```$/,$d;/compose up review/d' |
        sed "s#/media/usb#$NOW/usb#;s#/srv/studies#$NOW/data#;s#/srv/retraining#$NOW/better#" >"$NOW/commands"
    grep -c . "$NOW/commands" | grep -x 9
    cd "$NOW/arrived"
    OUT=$NOW/better TRACE=$NOW/connects.page \
        cut_off KILL 137 offline env "PATH=$NOW/bin:$PATH" MEMORY=4g "HOURS=$HOURS" bash -euxo pipefail "$NOW/commands"
    mv "$NOW"/arrived/site-*/ "$NOW/site"
}

compose() {  # WORDS...: `docker compose` in the site's folder; DATA, OUT, RELEASE, HOURS and MEMORY as a person sets them
    cd "$NOW/site"
    DATA=${DATA:-$NOW/data} OUT=${OUT:-$NOW/better} MEMORY=${MEMORY:-4g} HOURS=$HOURS offline "$NOW/bin/docker" compose "$@"
}

retrain() { compose run --rm retrain "$@"; }  # compose's own words where there are no others

plainly() {  # the page's command without compose
    sed -n '/^docker run/,/^```$/p' "$REPO/docker/README.md" | sed '/^```$/d' >"$NOW/plain"
    cd "$NOW/site"
    offline env "PATH=$NOW/bin:$PATH" "DATA=$DATA" "OUT=$OUT" bash -eu "$NOW/plain"
}
