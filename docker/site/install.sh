#!/usr/bin/env bash
# At the site: checks what came, gives the image to docker or podman, and says what to do next. Needs no network.
#
#   bash install.sh              $ENGINE names docker or podman where both are there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stop() { echo "error: $1" >&2; exit 2; }

engine() {
    local tool
    for tool in ${ENGINE:-docker podman}; do
        if "$tool" info >/dev/null 2>&1; then echo "$tool"; return; fi
    done
    stop "no container engine answers ('docker info', 'podman info'); install one, or run this as a user who may use it"
}

sha256sum --check --quiet SHA256SUMS ||
    stop "the files are not those that were packed; copy the tar again, and compare its digest with the publisher's"
unlisted=$(find . -type f ! -name SHA256SUMS ! -path './release/release.zip' ! -path './release/publisher.pub' -printf '%P\n' |
    while read -r file; do grep -qF "  $file" SHA256SUMS || echo "$file"; done)
[ -z "$unlisted" ] || stop "these files were not packed: $unlisted"

engine=$(engine)
"$engine" load --input image.tar.gz
cp release/*-*.zip release/release.zip

cat <<SAID

The image is in $engine. Next:

  1. Copy the publisher's key, which comes by another way than this folder, to $PWD/release/publisher.pub
     and compare its fingerprint with the one that you were told:
       openssl pkey -pubin -in release/publisher.pub -outform DER | sha256sum
  2. Name your studies and a folder for what comes out, which belongs to user 10001:
       export DATA=/srv/studies OUT=/srv/retraining
       mkdir -p \$OUT && chown 10001:10001 \$OUT
  3. Retrain, for 8 hours at most:
SAID
if "$engine" compose version >/dev/null 2>&1; then
    echo "       $engine compose run --rm retrain"
else
    cat <<SAID
       $engine run --rm --network none --read-only --tmpfs /tmp:rw,noexec,nosuid,nodev,size=1g,mode=1777 \\
           --cap-drop ALL --security-opt no-new-privileges --pids-limit 512 --memory 16g --shm-size 1g \\
           -v \$DATA:/data:ro -v $PWD/release:/release:ro -v \$OUT:/out localhost/overtile:latest
SAID
fi
