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
    for tool in buildah podman runc mmdebstrap; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || stop "missing: ${missing[*]}; apt-get install -y --no-install-recommends ${missing[*]}"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || stop "$PYTHON has no pip; name another Python in PYTHON"
    [ "$("$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')" = 3.11 ] ||
        stop "$PYTHON is not Python 3.11, for which the wheels must be; name another Python in PYTHON"
    mkdir -p "$WORK"
    WORK=$(cd "$WORK" && pwd)
    PYTHON=$(command -v "$PYTHON")
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    exec 9>"$WORK/lock"
    flock --nonblock 9 || stop "another smoke test uses $WORK"
}

clean() {  # containers, images, mounts and results; base system and wheels stay
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    awk -v store="$WORK/store/" 'index($2, store) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount || true
    rm -rf "$WORK/store" "$WORK/context" "$WORK/data" "$WORK/out" "$WORK/locked"
}

storage() {  # own store and settings, so that nothing of the machine's own containers is touched
    mkdir -p "$WORK"/store/{root,run,tmp} "$WORK"/{data,out,locked}
    chown $OWNER:$OWNER "$WORK"/{data,out}
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' \
        "$WORK/store/root" "$WORK/store/run" >"$WORK/store/storage.conf"
    # Explicit limits, for machines where root may not raise its own.
    printf '%s\n' '[containers]' 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]' \
        '[engine]' 'runtime = "runc"' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' \
        "tmp_dir = \"$WORK/store/tmp\"" >"$WORK/store/containers.conf"
    export CONTAINERS_STORAGE_CONF=$WORK/store/storage.conf CONTAINERS_CONF=$WORK/store/containers.conf
    export BUILDAH_RUNTIME=runc
}

check() {  # WHAT COMMAND...: one line; what the command said is shown if it failed
    local what=$1 begun=$SECONDS code=0
    shift
    set +e  # here and not by `if`, under which the command's own `set -e` would sleep
    (set -e; "$@") >"$WORK/log" 2>&1
    code=$?
    set -e
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $what$(took "$begun")"
    else
        failed=$((failed + 1))
        echo "FAIL  $what$(took "$begun")"
        tail -n 20 "$WORK/log" | sed 's/^/      | /'
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

