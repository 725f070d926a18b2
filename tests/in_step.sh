#!/usr/bin/env bash
# Does policydiffusion/ say what the notebooks say, and are the notebooks clean? Tried on a copy, so nothing here is changed.
set -euo pipefail
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r nbs policydiffusion settings.ini setup.py pyproject.toml README.md "$copy"
(cd "$copy" && nbdev_export && nbdev_clean)

same() {
    diff -rq --exclude=__pycache__ --exclude=.ipynb_checkpoints --exclude=artifacts "$1" "$copy/$1" && return
    echo "$1/ is not what $2 makes of the notebooks: run $2 and look at the change with git diff" >&2
    exit 1
}
same policydiffusion nbdev_export
same nbs nbdev_clean
