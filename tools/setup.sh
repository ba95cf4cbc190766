# shellcheck shell=bash
# What the tools share: Debian packages, the virtual environment, steps that say how long they take.
# Sourced, not run. The caller has `set -eu -o pipefail` and is in the repository's top directory.

venv=$PWD/.venv
# What the two programs need to be installed and to mount.
product_packages=(ca-certificates fuse3 libfuse3-dev pkg-config gcc libc6-dev)

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# step TEXT COMMAND...: run the command with its output kept aside; show that it is alive; say how
# long it took; if it fails, show the end of its output.
step() {
    local text=$1 log status=0 start=$SECONDS
    shift
    log=$(mktemp)
    "$@" </dev/null >"$log" 2>&1 &
    local process=$! waited=0
    trap 'kill "$process" 2>/dev/null; rm -f "$log"; exit 130' INT TERM
    while kill -0 "$process" 2>/dev/null; do
        if [ -t 2 ]; then
            printf '\r\033[K%s ... %d s  %.50s' "$text" $((SECONDS - start)) \
                "$(tail -n 1 "$log" | tr -d '\r\000-\037')" >&2
            sleep 0.2
        else
            [ $((waited % 150)) -ne 149 ] || printf '%s ... %d s\n' "$text" $((SECONDS - start)) >&2
            sleep 0.1
        fi
        waited=$((waited + 1))
    done
    wait "$process" || status=$?
    trap - INT TERM
    [ ! -t 2 ] || printf '\r\033[K' >&2
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "$text: failed with status $status"
    fi
    rm -f "$log"
    printf '%s: %d s\n' "$text" $((SECONDS - start)) >&2
}

# debian_packages NAME...: install those that are missing.
debian_packages() {
    local missing=() name sudo=()
    for name in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] ||
            missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        fail "no apt-get here; install what Debian calls ${missing[*]} and run again"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            fail "neither root nor sudo; have ${missing[*]} installed and run again"
        # The password is asked for here, since a step has no terminal to read it from.
        sudo -n true 2>/dev/null || sudo -v || fail "sudo refused; have ${missing[*]} installed"
        sudo=(sudo -n)
    fi
    step "apt-get update" "${sudo[@]}" apt-get -q -o DPkg::Lock::Timeout=120 update
    step "installing ${missing[*]}" "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get \
        -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "${missing[@]}"
}

# usable_python: prints the python3 of the PATH, or else Debian's, that is new enough and can build an
# extension in a virtual environment.
usable_python() {
    local python test='
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < (3, 11) or not os.path.exists(header))'
    for python in "$(command -v python3 || true)" /usr/bin/python3; do
        if [ -x "$python" ] && "$python" -c "$test" 2>/dev/null; then
            printf '%s' "$python"
            return
        fi
    done
    return 1
}

# virtual_environment EXTRA: .venv with the project in it, and its extra dependencies (may be empty).
virtual_environment() {
    local project stamp=$venv/installed installed
    project=$(cat pyproject.toml setup.py overlayfs_py/wire/lane/*.p* | sha256sum)
    # A .venv that was moved, or whose Python went with an upgrade, does not start.
    "$venv/bin/python" -c 'import pip' 2>/dev/null || rm -rf "$venv"
    installed=$(cat "$stamp" 2>/dev/null || true)
    [ "$installed" != "$1 $project" ] || return 0
    # What has more is good enough for who wants less.
    [ -n "$1" ] || [ "${installed#* }" != "$project" ] || return 0
    if [ ! -d "$venv" ]; then
        local python
        python=$(usable_python) || fail "no complete Python 3.11 or later here, after installing Debian's"
        step "making .venv" "$python" -m venv "$venv"
    fi
    # The plain form of an editable install: a path entry, where the default hooks into every start
    # of the interpreter.
    step "installing the project into .venv" "$venv/bin/pip" install --no-input \
        --config-settings editable_mode=compat -e ".${1:+[$1]}"
    printf '%s' "$1 $project" >"$stamp"
}

if [ ! -d "$venv" ] && ! usable_python >/dev/null; then
    product_packages+=(python3 python3-venv python3-dev)
fi
