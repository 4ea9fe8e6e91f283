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
# compose would read some files unasked, say .env
strange=$(comm -23 <(find . -type f ! -path './release/*' -printf '%P\n' | sort) <(cut -c 67- SHA256SUMS | sort) | grep -vx SHA256SUMS) || true
[ -z "$strange" ] || stop "not of what was packed: ${strange//$'\n'/, }; move it out of this folder, then run this again"

engine=$(engine)
"$engine" load --input image.tar
cp release/*-*.zip release/release.zip
chmod -R a+rX release    # the image reads it as its own user

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
