#!/usr/bin/env bash
# Makes the environment in which auto-circuit runs.
#
#   benchmarks/peers/setup.sh [FOLDER]
#
# FOLDER is by default $PERSONA_CIRCUITS_PEERS, else .venv beside this script. PYTHON names the
# interpreter (3.10 to 3.12), by default python3.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${1:-${PERSONA_CIRCUITS_PEERS:-$here/.venv}}"
requirements="$here/requirements.txt"

if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; then
    echo "setup.sh: auto-circuit's environment needs Python 3.10 to 3.12; name one with PYTHON=..." >&2
    exit 2
fi

"${PYTHON:-python3}" -m venv "$venv"
install() { "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@"; }

# torch first and alone, so that the other packages meet the build that is already there
# instead of choosing one of their own.
install "$(grep '^torch==' "$requirements")"
install -r <(grep -v '^auto-circuit==' "$requirements")
# --no-deps: auto-circuit declares jax-based and drawing packages that are not used here,
# and a kaleido of its own.
install --no-deps "$(grep '^auto-circuit==' "$requirements")"

"$venv/bin/python" -c 'import auto_circuit.prune, auto_circuit.prune_algos.mask_gradient, auto_circuit.prune_algos.ACDC'
echo "auto-circuit is ready: $venv/bin/python"
