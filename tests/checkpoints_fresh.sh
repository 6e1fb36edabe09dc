#!/bin/sh
# tests/checkpoints is what make_checkpoints.py writes: makes it again in a venv and compares. 77: no venv or no PyPI.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" || exit 77
"$work/venv/bin/pip" install -q -r "$here/checkpoints-requirements.txt" || exit 77
"$work/venv/bin/python" "$here/make_checkpoints.py" "$work/made"
diff -r "$work/made" "$here/checkpoints"
