# Helpers of ./demo and ./check. Sourced, not run.

# A whole check builds each crate once; what rustc would keep for building parts of one again takes more room than all programs and
# tests together.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

note() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs apt-get as root, if this user can be root.
apt() {
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >&2
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >&2
    else
        return 1
    fi
}

# need_package COMMAND PACKAGE...: installs Debian packages when COMMAND is not there.
need_package() {
    local command=$1
    shift
    command -v "$command" >/dev/null 2>&1 && return 0
    note "installing $*"
    { [ -e "$cache/apt-updated" ] || apt update; } && touch "$cache/apt-updated" && apt install -y --no-install-recommends "$@" ||
        fail "$command is missing. Install the Debian package $1 (apt-get install $1), then run this again."
}

need_tools() {
    command -v cargo >/dev/null 2>&1 || fail "cargo is missing. Install Rust 1.95 or later, then run this again."
    need_package cc gcc libc6-dev
    need_package python3 python3
}

# A Python that the package opentrons 9.0.0 runs on.
robot_python() {
    local candidate
    for candidate in python3.11 python3.10 python3.12 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.10, 3.11 or 3.12 is needed for the opentrons package. Debian 12 has 3.11: apt-get install python3."
}

# venv DIR PYTHON PACKAGE...: a virtual environment with these packages, made once for each list of packages.
venv() {
    local dir=$1 python=$2 stamp
    shift 2
    stamp="$dir/.packages"
    if [ ! -x "$dir/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$*" ]; then
        note "preparing Python packages: $*"
        rm -rf "$dir"
        if ! "$python" -m venv "$dir" >/dev/null 2>&1; then
            rm -rf "$dir"
            { [ -e "$cache/apt-updated" ] || apt update; } && touch "$cache/apt-updated" &&
                apt install -y --no-install-recommends python3-venv ||
                fail "Python cannot make virtual environments. Install the Debian package python3-venv, then run this again."
            "$python" -m venv "$dir" >&2
        fi
        "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
        printf '%s' "$*" >"$stamp"
    fi
}

# wait_for FILE PID LOG: until the file is there, or the process is gone.
wait_for() {
    local tries=0
    until [ -s "$1" ]; do
        kill -0 "$2" 2>/dev/null || { cat "$3" >&2; fail "the server did not start"; }
        tries=$((tries + 1))
        [ "$tries" -lt 1200 ] || { tail -5 "$3" >&2; fail "the server was not ready after two minutes"; }
        sleep 0.1
    done
}

# json FILE MEMBER
json() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]] or "")' "$1" "$2"; }
