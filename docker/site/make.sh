#!/usr/bin/env bash
# One tar for one site: image, release, compose files, instructions, checksums. It installs with the cable unplugged.
#
#   bash docker/site/make.sh NAME-VERSION.zip publisher.pub [FOLDER]     writes FOLDER/site-NAME-VERSION.tar
#
# The image is the one that `docker` or `podman` has here as localhost/overtile:latest ($IMAGE names another). It must
# take the release with the key before both go out. The key itself is not in the tar: whoever could change the release
# on its way could change the key beside it.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
IMAGE=${IMAGE:-localhost/overtile:latest}

stop() { echo "error: $1" >&2; exit 2; }

engine() {  # the one that has the image
    local tool
    for tool in docker podman; do
        if "$tool" image inspect "$IMAGE" >/dev/null 2>&1; then echo "$tool"; return; fi
    done
    stop "neither docker nor podman has the image $IMAGE here; build it first, see docker/README.md"
}

accepted() {  # the image itself verifies the release, as it will at the site
    local words=(run --rm --network none --read-only --tmpfs "/tmp:rw,mode=1777")
    words+=(--volume "$release:/release/$(basename "$release"):ro" --volume "$key:/release/publisher.pub:ro")
    "$engine" "${words[@]}" "$IMAGE" verify "/release/$(basename "$release")" --key /release/publisher.pub ||
        stop "$release is not a release that this image takes with $key"
}

saved() {  # docker-archive, which both `docker load` and `podman load` read
    local format=()
    [ "$engine" = docker ] || format=(--quiet --format docker-archive)
    "$engine" save "${format[@]}" "$IMAGE" | gzip --no-name -1
}

release=$(realpath -e "${1:?the release, NAME-VERSION.zip}")
key=$(realpath -e "${2:?the public key that it was signed for}")
out=$(realpath -e "${3:-.}")
name=site-$(basename "$release" .zip)
engine=$(engine)
accepted

work=$(mktemp -d "$out/.$name.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/release"
saved >"$work/$name/image.tar.gz"
cp "$release" "$work/$name/release/"
cp "$HERE"/../compose.yaml "$HERE"/../compose.gpu.yaml "$HERE"/INSTALL.md "$HERE"/install.sh "$work/$name/"
(cd "$work/$name" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs -d '\n' sha256sum >../SHA256SUMS)
mv "$work/SHA256SUMS" "$work/$name/"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf "$work/$name.tar" "$name"
mv "$work/$name.tar" "$out/"

echo "$out/$name.tar"
echo "Tell the site by another way than this file travels, say by telephone:"
echo "  the file's digest      $(sha256sum <"$out/$name.tar" | cut -d ' ' -f 1)"
echo "  the key's fingerprint  $(openssl pkey -pubin -in "$key" -outform DER | sha256sum | cut -d ' ' -f 1)"
