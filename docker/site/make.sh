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
    "$engine" run --rm --network none --read-only --tmpfs /tmp:rw,mode=1777 --volume "$work:/release:ro" \
        "$IMAGE" verify "/release/$name.zip" --key /release/publisher.pub ||
        stop "$release is no release that this image takes with $key"
}

saved() {  # FILE: docker-archive, which both `docker load` and `podman load` read
    local format=()
    [ "$engine" = docker ] || format=(--quiet --format docker-archive)
    "$engine" save "${format[@]}" --output "$1" "$IMAGE"
}

release=$(realpath -e "${1:?the release, NAME-VERSION.zip}")
key=$(realpath -e "${2:?the public key that it was signed for}")
out=$(realpath -e "${3:-.}")
name=$(basename "$release" .zip)
site=site-$name
engine=$(engine)

work=$(mktemp -d "$out/.$site.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
install -m 644 "$release" "$work/$name.zip"
install -m 644 "$key" "$work/publisher.pub"
accepted

mkdir -p "$work/$site/release"
saved "$work/$site/image.tar"
mv "$work/$name.zip" "$work/$site/release/"
cp "$HERE"/../{compose.yaml,compose.gpu.yaml,README.md} "$HERE"/{INSTALL.md,install.sh} "$work/$site/"
(cd "$work/$site" && find . -type f -printf '%P\n' | sort | xargs -d '\n' sha256sum >"$work/SHA256SUMS")
mv "$work/SHA256SUMS" "$work/$site/"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf "$work/$site.tar" "$site"
mv "$work/$site.tar" "$out/"

echo "$out/$site.tar"
echo "Tell the site by another way than this file travels, say by telephone:"
echo "  the file's digest      $(sha256sum <"$out/$site.tar" | cut -d ' ' -f 1)"
echo "  the key's fingerprint  $(openssl pkey -pubin -in "$key" -outform DER | sha256sum | cut -d ' ' -f 1)"
