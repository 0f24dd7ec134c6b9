# Sourced by the other scripts: `kamado_setup base|test|dev` makes .venv in the repository, once.
# shellcheck shell=bash
#
# Variables it heeds:
#   KAMADO_PYTHON        the interpreter to build .venv with (3.11 or newer)
#   KAMADO_TORCH_INDEX   address of one more package index, to look for torch in (say, one with CPU builds)
#
# Everything it says goes to stderr. Why it is done this way: docs/adr/0006-installation.md

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
torch_version=$(sed -n 's/^torch==//p' "$root/constraints.txt")

say() { printf 'kamado: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# kamado_setup LEVEL: returns when .venv holds at least what LEVEL needs.
kamado_setup() {
    local level
    case $1 in base) level=1 ;; test) level=2 ;; dev) level=3 ;; *) die "unknown set-up level $1" ;; esac
    is_ready "$level" && return
    local base_python
    base_python=$(find_python) || exit 1
    # The lock belongs to the open file, so it outlives the interpreter that takes it, until every process that has
    # it open (pip too) has ended or closed it.
    { exec 9>"$root/.venv.lock"; } 2>/dev/null || die "cannot write in $root"
    if ! "$base_python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
        say "waiting for another set-up of this folder"
        "$base_python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || die "cannot lock $root/.venv.lock"
    fi
    is_ready "$level" || install "$level" "$base_python"
    exec 9>&-
}

# What the installed state depends on. Sources are not in it, since the installation is editable, but for those in C.
fingerprint() {
    printf '%s\n' "$root"
    cat "$venv/pyvenv.cfg" "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/setup.sh" \
        "$root/runtime/kamado/kernels/source/"*.[ch]
}

is_ready() {
    local have_level have_sum
    [[ -x $python && -f $venv/kamado-ready ]] || return 1
    read -r have_level have_sum <"$venv/kamado-ready" || return 1
    ((have_level >= $1)) && [[ $have_sum == "$(fingerprint | cksum)" ]]
}

find_python() {
    local candidate
    for candidate in ${KAMADO_PYTHON:+"$KAMADO_PYTHON"} python3 python3.11 python3.12 python3.13 python; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            say "$candidate has no venv module; install it (on Debian and Ubuntu the package is python3-venv)"
            return 1
        fi
        command -v "$candidate"
        return
    done
    say "needs Python 3.11 or newer, and found none; install it, or name it in KAMADO_PYTHON"
    return 1
}

install() {
    local level=$1 base_python=$2 target="$root[video,restore,vision,sound]"
    # A set-up that was killed half-way, another interpreter or another folder: begin anew.
    if [[ -e $venv/kamado-busy || ! -x $python || ! -f $venv/kamado-root || $(<"$venv/kamado-root") != "$root" ]]; then
        say "making $venv with $("$base_python" -V)"
        rm -rf "$venv"
        "$base_python" -m venv "$venv" >&2 || die "cannot make $venv; see above"
        printf '%s\n' "$root" >"$venv/kamado-root"
    fi
    rm -f "$venv/kamado-ready"
    : >"$venv/kamado-busy"
    install_torch
    # What it asks for besides torch would bring torchvision, which it needs for nothing (docs/adr/0026).
    pip_install --constraint "$root/constraints.txt" --no-deps spandrel || pip_failed spandrel
    case $level in 2) target="$root[test]" ;; 3) target="$root[dev]" ;; esac
    say "installing kamado and what it needs"
    pip_install --constraint "$root/constraints.txt" --no-build-isolation --editable "$target" ||
        pip_failed "the packages in pyproject.toml"
    rm "$venv/kamado-busy"
    printf '%s %s\n' "$level" "$(fingerprint | cksum)" >"$venv/kamado-ready"
    say "ready"
}

# setuptools comes first because torch needs it anyway, and building without isolation uses it.
install_torch() {
    pip_install --constraint "$root/constraints.txt" setuptools || pip_failed setuptools
    "$python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' \
        "$torch_version" 2>/dev/null && return
    local index=()
    [[ -z ${KAMADO_TORCH_INDEX:-} ]] || index=(--extra-index-url "$KAMADO_TORCH_INDEX")
    if [[ $(uname -s) == Linux ]] && ! has_nvidia_gpu; then
        say "installing torch $torch_version (CPU build)"
        pip_install ${index[@]+"${index[@]}"} --constraint "$root/constraints.txt" "torch==$torch_version+cpu" && return
        say "no CPU build of torch $torch_version in the package indexes; taking the default build, which may bring" \
            "gigabytes of CUDA packages (to avoid that, name an index with CPU builds in KAMADO_TORCH_INDEX)"
    fi
    say "installing torch $torch_version"
    pip_install ${index[@]+"${index[@]}"} --constraint "$root/constraints.txt" "torch==$torch_version" ||
        pip_failed "torch $torch_version"
}

has_nvidia_gpu() {
    [[ -e /dev/nvidia0 ]] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
}

pip_install() {
    "$python" -I -m pip install --disable-pip-version-check --no-input "$@" >"$venv/pip.log" 2>&1
}

# A pip that ended by itself leaves nothing half-installed, so the next try may go on from here.
pip_failed() {
    rm -f "$venv/kamado-busy"
    grep -E '^ERROR|[Ee]rror:' "$venv/pip.log" | tail -n 3 >&2 || true
    die "could not install $1; the whole story is in $venv/pip.log"
}
