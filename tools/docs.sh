#!/usr/bin/env bash
# Builds the documentation site into site/ (or FOLDER); a warning is an error. Needs the extra [docs] and no network.
# usage: tools/docs.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONSAFEPATH=1 python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs "${1:-site}"
# The pages load nothing from other hosts: no script, style, font or picture.
if grep -rnoE --include='*.html' '<(script|link|img|iframe)[^>]*(src|href)="(https?:)?//[^"]*"' "${1:-site}" | grep -v 'rel="canonical"'; then
  echo "pages load parts from other hosts" >&2
  exit 1
fi
echo "open ${1:-site}/index.html"
