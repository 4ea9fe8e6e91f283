# shellcheck shell=bash
# How the smoke test checks: its storage, its containers, one line for every check. Sourced by docker/smoke_test.sh.

BASE=localhost/python-base:bookworm
IMAGE=localhost/overtile:latest   # the name that docker/compose.yaml uses, `overtile`
OWNER=10001
STRANGER=12345   # a uid that the image has never heard of

passed=0
failed=0

stop() {  # SENTENCE: what a person must do first
    echo "error: $1" >&2
    exit 2
}

need() {  # what this machine must have
    [ "$(id -u)" = 0 ] || stop "must run as root: it mounts file systems and starts containers"
    local missing=()
    for tool in buildah podman runc mmdebstrap strace openssl unshare; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || stop "missing: ${missing[*]}; apt-get install -y --no-install-recommends ${missing[*]}"
    "$PYTHON" -c 'import pip, podman_compose' 2>/dev/null ||
        stop "$PYTHON lacks pip or podman-compose; name another Python in PYTHON, as that of make setup"
    [ "$("$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')" = 3.11 ] ||
        stop "$PYTHON is not Python 3.11, for which the wheels must be; name another Python in PYTHON"
    mkdir -p "$WORK"
    WORK=$(cd "$WORK" && pwd)
    NOW=$WORK/now
    PYTHON=$(command -v "$PYTHON")
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    exec 9>"$WORK/lock"
    flock --nonblock 9 || stop "another smoke test uses $WORK"
}

clean() {  # containers, images, mounts and results; base system and wheels stay
    local kept
    for kept in "$NOW"/*/storage.conf; do
        [ ! -e "$kept" ] || { store "$(dirname "$kept")" && podman rm --all --force --time 0 >/dev/null 2>&1; } || true
    done
    awk -v now="$NOW/" 'index($2, now) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount || true
    rm -rf "$NOW"
}

folders() {  # NAME...: of this run, which belong to the user of the image
    mkdir -p "${@/#/$NOW/}"
    chown $OWNER:$OWNER "${@/#/$NOW/}"
}

store() {  # FOLDER: images and containers live there from now on, so that the machine's own are not touched
    mkdir -p "$1"/{root,run,tmp}
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$1/root" "$1/run" >"$1/storage.conf"
    # Explicit limits, for machines where root may not raise its own.
    printf '%s\n' '[containers]' 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]' \
        '[engine]' 'runtime = "runc"' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' \
        "tmp_dir = \"$1/tmp\"" >"$1/containers.conf"
    export CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_CONF=$1/containers.conf BUILDAH_RUNTIME=runc
}

check() {  # WHAT COMMAND...: one line; what the command said is shown if it failed
    local what=$1 begun=$SECONDS code=0
    shift
    set +e  # here and not by `if`, under which the command's own `set -e` would sleep
    (set -e; "$@") >"$NOW/log" 2>&1
    code=$?
    set -e
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $what$(took "$begun")"
    else
        failed=$((failed + 1))
        echo "FAIL  $what$(took "$begun")"
        tail -n 20 "$NOW/log" | cut -c 1-300 | sed 's/^/      | /'
    fi
}

must() {  # a check that all later ones stand on
    local before=$failed
    check "$@"
    [ "$failed" = "$before" ] || finish
}

took() { [ $((SECONDS - $1)) -lt 5 ] || printf ' (%d s)' $((SECONDS - $1)); }

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] || exit 1
}

none() { ! grep -iE "$1"; }  # PATTERN: no line of the standard input has it, case aside

ends_with() {  # CODES WORDS COMMAND...: one of these exit codes, and WORDS in what was said
    local expected=$1 words=$2 code=0 said
    shift 2
    said=$("$@" 2>&1) || code=$?
    echo "$said"
    echo "exit code $code, expected $expected, and the words: $words"
    grep -qxE "$expected" <<<"$code"
    grep -qF "$words" <<<"$said"
}

inside() {  # OPTIONS... IMAGE COMMAND...: as a site runs it
    podman run --no-healthcheck --network none --read-only --read-only-tmpfs=false \
        --tmpfs /tmp:rw,noexec,nosuid,nodev,size=512m,mode=1777 --cap-drop ALL --security-opt no-new-privileges \
        --pids-limit 256 --memory 4g --shm-size 1g "$@"
}

python_inside() {  # a program on standard input
    inside --rm --interactive --volume "$NOW/publisher:/data:ro" --volume "$NOW/published:/out" \
        --entrypoint python "$IMAGE" -
}
