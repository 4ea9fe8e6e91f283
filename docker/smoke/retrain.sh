# shellcheck shell=bash
# Retraining at the site: that it ends well, that it refuses, and how it fails. Sourced by docker/smoke_test.sh.

HOURS=0.01       # of training, 36 s
PATIENTS=40      # half of them are sealed: the 20 that the usual rule asks for
WORDS=(retrain --bundle /release/release.zip --key /release/publisher.pub --data /data --out /out)

cut_off() {  # SIGNAL CODE COMMAND...: the retraining of COMMAND gets the signal once it has written its state again
    local signal=$1 expected=$2 code=0 process
    shift 2
    touch "$NOW/mark"
    "$@" &
    process=$!
    until [ "$OUT/training/last.pt" -nt "$NOW/mark" ]; do
        kill -0 $process
        sleep 0.2
    done
    podman kill --signal "$signal" "$(podman ps --quiet)"
    wait $process || code=$?
    echo "exit code $code, expected $expected"
    [ "$code" = "$expected" ]
}

accepted() {  # after the kill the same command again; it is stopped once more, then left alone
    export OUT=$NOW/better
    cut_off INT 130 retrain
    TRACE=$NOW/connects.finished retrain
    first_paragraph accepted
    whole_files
}

first_paragraph() {  # WORDS: they stand in the first paragraph of the page
    "$PYTHON" - "$OUT/report.html" "$1" <<'PYTHON'
import re
import sys
from pathlib import Path

page = Path(sys.argv[1]).read_text(encoding="utf-8")
first = re.sub(r"<[^>]+>|\s+", " ", re.search(r"<p\b.*?</p>", page, re.DOTALL)[0])
print(first)
assert sys.argv[2] in first.lower()
PYTHON
}

whole_files() {  # nothing half-written, nothing of another owner, the studies untouched
    find "$OUT" \( -name '*.tmp' -o -name '*.part' -o -name '*.zip.*' \) | none .
    find "$OUT" ! -uid "$OWNER" | none .
    diff "$NOW/data.sha256" <(digests)
}

digests() { (cd "$NOW/data" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

verified() {  # the new release, as who gets it would
    compose run --rm overtile verify "/out/$(basename "$NOW"/better/*.zip)" \
        --key /out/overtile_release.pub
}

predicted() {
    compose run --rm overtile predict --bundle "/out/$(basename "$NOW"/better/*.zip)" --key /out/overtile_release.pub \
        --input /data --match '*/image.tif' --output /out/labels
    [ "$(find "$NOW/better/labels" -name image.tif | wc -l)" = "$(find "$NOW/data" -name image.tif | wc -l)" ]
}

attempts() {  # LOG...: connections that lead out; a container without a network asks 127.0.0.1:53 for names
    awk '/sa_family=AF_INET/ && (/htons\(53\)/ || !(/inet_addr\("127\./ || /"::1"/))' "$@"
}

no_attempts() {
    attempts "$NOW"/connects.* | none .
    grep -q AF_UNIX "$NOW/connects.finished"
}

seen_attempts() {  # the trace sees those of a program in the container that tries
    TRACE=$NOW/planted offline podman run --rm --interactive --no-healthcheck --network none --entrypoint python "$IMAGE" - <<'PYTHON'
import socket
from contextlib import suppress

with suppress(OSError):
    socket.create_connection(("192.0.2.1", 80), 1)
with suppress(OSError):
    socket.getaddrinfo("example.org", 80)
PYTHON
    attempts "$NOW/planted" | grep 192.0.2.1
    attempts "$NOW/planted" | grep 'htons(53)'
}

refused() {  # a learning rate that ruins the model
    export OUT=$NOW/worse DATA=$NOW/publisher   # fewer patients, since validation is enough to see it
    ends_with 3 REFUSED retrain "${WORDS[@]}" --epochs 4 --learning_rate 1000
    first_paragraph refused
    find "$OUT" -maxdepth 1 -name '*.zip' | none .
    whole_files
}

fails() {  # CODE WORDS OPTIONS...: with its sentence, no traceback, no release and no file that is not whole
    local code=$1 words=$2
    shift 2
    ends_with "$code" "$words" retrain "$@" | tee "$NOW/failed"
    none '^Traceback' <"$NOW/failed"
    find "$OUT" -maxdepth 1 -name '*.zip' | none .
    [ "$(stat --format %u "$OUT")" != "$OWNER" ] || whole_files
}

unwritable() {
    mkdir "$NOW/locked"
    OUT=$NOW/locked fails 2 'Permission denied; give the user'
}

no_studies() {
    mkdir "$NOW/empty"
    export DATA=$NOW/empty OUT=$NOW/nothing
    ends_with 2 'the folder is empty' plainly
    whole_files
}

corrupt_study() {  # the second half of an image never arrived
    cp -a "$NOW/data" "$NOW/corrupt"
    local image
    image=$(find "$NOW/corrupt" -name image.tif | sort | head -n 1)
    truncate --size=$(($(stat --format %s "$image") / 2)) "$image"
    DATA=$NOW/corrupt OUT=$NOW/nothing fails 2 'image.tif: '
}

tampered_release() {
    cp -a "$NOW/site/release" "$NOW/release"
    spoil "$NOW/release/release.zip"
    RELEASE=$NOW/release OUT=$NOW/nothing fails 2 release.zip
}

strangers_release() {  # signed, but by somebody else
    cp -a "$NOW/site/release" "$NOW/stranger"
    openssl genpkey -algorithm ed25519 | openssl pkey -pubout -out "$NOW/stranger/publisher.pub"
    chmod a+r "$NOW/stranger/publisher.pub"
    RELEASE=$NOW/stranger OUT=$NOW/nothing fails 2 signature
}

full_disk() {  # room for the release, not for the checkpoints of a training
    mkdir "$NOW/small"
    mount -t tmpfs -o "size=$1,uid=$OWNER,gid=$OWNER" tmpfs "$NOW/small"
    DATA=$NOW/publisher OUT=$NOW/small fails 2 'No space left on device'
    umount "$NOW/small"
}

no_memory() {
    MEMORY=$1 DATA=$NOW/publisher OUT=$NOW/poor fails 1 'memory'
}

reviewed() {  # MLflow's page over the retraining, started as compose starts it, but asked from inside: no network here
    inside --detach --name review --pids-limit 128 --memory 2g --volume "$NOW/better:/out" "$IMAGE" \
        review /out --host 0.0.0.0
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
found = json.loads(ask("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 100}))["experiments"]
runs = json.loads(
    ask("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment["experiment_id"] for experiment in found]})
)["runs"]
found = [run["info"]["status"] for run in runs]
assert found.count("FINISHED") > 3 and set(found) <= {"FINISHED", "KILLED"}, found
for run in runs:
    assert json.loads(ask("GET", f"/get-artifact?run_uuid={run['info']['run_id']}&path=config.json")), run
PYTHON
    podman stop --time 60 review
    local code
    code=$(podman inspect --format '{{.State.ExitCode}}' review)
    podman rm review
    echo "exit code $code, expected 0"
    [ "$code" = 0 ]
}
