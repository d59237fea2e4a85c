# Shared by the scripts in this directory, which source it: Debian packages, the virtual environment, /dev/fuse.
#
# Every step looks first and does only what is missing, so that it can run before each command. It changes .venv and,
# through apt-get, the machine's packages; nothing else.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { printf '==> %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# What building and running takes, and what the tests drive besides: a command, and the package that has it.
runtime_commands=(fusermount3:fuse3 pkg-config:pkg-config gcc:gcc)
test_commands=(
    vim:vim nvim:neovim nano:nano emacs:emacs-nox ed:ed tmux:tmux less:less
    git:git rsync:rsync tar:tar jq:jq inotifywait:inotify-tools
    bwrap:bubblewrap podman:podman runc:runc
)

usable_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 /usr/bin/python3; do
        candidate=$(command -v "$candidate") || continue
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# The Python that .venv is (or will be) made with has its C headers.
has_python_headers() {
    local python=$venv/bin/python
    [ -x "$python" ] || python=$(usable_python) || return 1
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

missing_packages() {
    local pair
    local -a pairs=("${runtime_commands[@]}")
    [ "$1" = run ] || pairs+=("${test_commands[@]}")
    for pair in "${pairs[@]}"; do
        command -v "${pair%%:*}" >/dev/null || printf '%s\n' "${pair#*:}"
    done
    [ -e /usr/include/stdio.h ] || printf 'libc6-dev\n'
    pkg-config --exists fuse3 2>/dev/null || printf 'libfuse3-dev\n'
    usable_python >/dev/null || printf 'python3-venv\n'
    has_python_headers || printf 'python3-dev\n'
    if [ "$1" != run ]; then
        # The containers' root directory has one program: it must need no libraries.
        if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
            printf 'busybox-static\n'
        fi
    fi
}

install_packages() {
    local -a packages as_root=()
    mapfile -t packages < <(missing_packages "$1")
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "install what provides these Debian packages, then try again: ${packages[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "as root, run: apt-get install ${packages[*]}"
        as_root=(sudo)
    fi
    say "installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >&2 ||
        die "apt-get could not install: ${packages[*]}"
}

# .venv, with exactly what the lock files say. The stamp is written last: an interrupted run is repeated.
install_venv() {
    local stamp=$venv/.chatfs-installed wanted python
    wanted=$(cd "$root" && sha256sum pyproject.toml requirements-build.lock requirements.lock)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c 'import sys' 2>/dev/null; then
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(usable_python) || die "needs Python 3.11 or later with venv: apt-get install python3-venv"
        say "making .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "installing the locked Python packages (the first time, pyfuse3 is compiled: a minute)"
    local -a pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet install)
    "${pip[@]}" --require-hashes -r "$root/requirements-build.lock" >&2
    "${pip[@]}" --require-hashes --no-build-isolation -r "$root/requirements.lock" >&2
    "${pip[@]}" --no-deps --no-build-isolation -e "$root" >&2
    printf '%s\n' "$wanted" >"$stamp"
}

need_fuse() {
    [ -e /dev/fuse ] || die "there is no /dev/fuse: run 'modprobe fuse' as root;" \
        "a container needs --device /dev/fuse --cap-add SYS_ADMIN"
    [ -r /dev/fuse ] && [ -w /dev/fuse ] || die "/dev/fuse can't be opened by $(id -un): make it mode 0666"
}

# set_up run|test: what running chatfs takes, or its tests. Runs of several scripts at once wait for each other.
set_up() {
    (
        flock 9
        install_packages "$1" 9<&-
        install_venv 9<&-
    ) 9<"$root/pyproject.toml"
}
