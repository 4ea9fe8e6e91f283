#!/usr/bin/env bash
# Builds the image with the network off, publishes a model with it, and is then a site: installs the tar with the cable
# unplugged, retrains, and sees it fail in every way that has a sentence. Ends with "N passed, 0 failed", or exit code 1.
#
#   bash docker/smoke_test.sh        as root; needs the programs named in docker/smoke/harness.sh, and a Python 3.11
#                                    with pip and podman-compose, as `make setup` makes it
#
# Neither a Docker engine nor an image registry is needed. Base system and wheels are kept in docker/work (or
# $SMOKE_WORK) for the next time; delete it for fresh ones.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=${SMOKE_WORK:-$REPO/docker/work}
PYTHON=${PYTHON:-python3}
BUNDLE=neuron_em_segmentation

# shellcheck source=SCRIPTDIR/smoke/harness.sh
. "$REPO/docker/smoke/harness.sh"
# shellcheck source=SCRIPTDIR/smoke/image.sh
. "$REPO/docker/smoke/image.sh"
# shellcheck source=SCRIPTDIR/smoke/publisher.sh
. "$REPO/docker/smoke/publisher.sh"
# shellcheck source=SCRIPTDIR/smoke/site.sh
. "$REPO/docker/smoke/site.sh"
# shellcheck source=SCRIPTDIR/smoke/retrain.sh
. "$REPO/docker/smoke/retrain.sh"

need
trap clean EXIT
clean
folders publisher published data
store "$NOW/store"

must "build context" context
must "base system: Debian 12 with Python 3.11" base_system
must "wheels as in docker/requirements-cpu.lock" wheelhouse
must "image builds with the network off, every wheel by its digest" build
base=$(podman image mount $BASE)
root=$(podman image mount $IMAGE)
echo "      image: $(($(podman inspect --format '{{.Size}}' $IMAGE) / 1000000)) MB"

check "user is $OWNER" configured '{{.Config.User}}' $OWNER:$OWNER
check "without words it retrains" configured '{{json .Config.Entrypoint}} {{json .Config.Cmd}}' \
    '["overtile"] ["retrain","--bundle","/release/release.zip","--key","/release/publisher.pub","--data","/data","--out","/out"]'
check "health check is set" configured '{{json .HealthCheck.Test}}' "[\"CMD\",\"overtile\",\"check\",\"$BUNDLE\"]"
check "stop signal is SIGINT" configured '{{.Config.StopSignal}}' SIGINT
check "labels" labelled
check "no pip settings, proxy, secret or address in configuration and history" no_traces
check "no settings, wheels, caches, keys, weights or resolver in its files" no_settings
check "no new setuid file" same_setuid
check "no pip, no development tools, no compiler" no_development
check "packages are those of docker/requirements-cpu.lock" locked_versions
check "bytecode is there for good" bytecode
check "nothing is missed of what was left out" whole
check "confined: uid, capabilities, privileges, seccomp, network" confined
check "writable: /out, /tmp and /dev/shm, no more" writable
check "health check passes, as a uid that the image does not know" \
    inside --rm --user $STRANGER:$STRANGER --passwd=false "$IMAGE" check "$BUNDLE"

must "publisher: phantom patients" patients "$NOW/publisher" 6 2 1
must "publisher: index, split, audit" index
must "publisher: training, evaluation" train
must "publisher: a signed release" release
must "publisher: one tar for the site, after its image has verified the release" site_tar
podman image unmount --all >/dev/null

folders worse nothing poor
must "site: $PATIENTS phantom patients" patients "$NOW/data" "$PATIENTS" 1 7
digests >"$NOW/data.sha256"
store "$NOW/installed"
docker_of_the_site
must "site: the page's commands, from the tar to a retraining, without a network; it is killed outright" followed
must "retrain: the same command again, and again after a stop (130), is accepted" accepted
check "retrain: its release is verified with the site's key" verified
check "retrain: its release predicts" predicted
check "retrain: no connection out of the container was tried" no_attempts
check "retrain: a connection that is tried would be seen" seen_attempts
check "retrain: an absurd learning rate is refused with 3" refused
check "an /out of another owner ends with 2" unwritable
check "an empty /data ends with 2, without compose too" no_studies
check "a study that was cut off ends with 2" corrupt_study
check "a release that was changed ends with 2" tampered_release
check "a release that another key has signed ends with 2" strangers_release
check "site: a tar that was changed on its way is not installed" tampered_tar
check "a full disk ends with 2" full_disk 14m
check "too little memory ends with 1" no_memory 900m
check "review shows the runs and their files, and ends with 0 when it is stopped" reviewed
finish
