#!/bin/sh
# The lambda study, in order. Resumable: the same command goes on where a killed one stopped, and runs nothing twice.
#   TEXT=folder with train.txt, valid.txt, test.txt   OUT=runs/lambda   WORKERS=2
#   sh docs/studies/lambda/run.sh [further flags of training.search, for all parts: --block-size 256 --batch-size 16]
set -eu
: "${TEXT:?set TEXT to the folder with train.txt, valid.txt and test.txt}"
OUT=${OUT:-runs/lambda}
HERE=$(dirname "$0")
search() {
    part=$1 points=$2; shift 2
    python -m training.search --study "$OUT/$part" --points "$points" --dataset "$TEXT" \
        --workers "${WORKERS:-2}" --threads 1 "$@"
}
search tuning "$HERE/tuning.json" "$@"
search tuning-low "$HERE/tuning-low.json" "$@"
python "$HERE/write_points.py" "$OUT/tuning/results.jsonl" "$OUT/tuning-low/results.jsonl" "$OUT/points"
search confirm "$OUT/points/confirm.json" "$@"
search screen "$OUT/points/screen.json" "$@"
search confound "$HERE/confound.json" "$@"
python -m training.report "$OUT/confirm" --output "$OUT/report-confirm" --apart-from learning_rate --test sign_flip \
    --contrast l0.01:none --contrast l0.01:sham
python -m training.report "$OUT/screen" --output "$OUT/report-screen" --apart-from learning_rate --test t \
    --contrast l0.001:none --contrast l0.01:none --contrast l0.05:none --contrast l0.1:none --contrast l0.3:none \
    --contrast sham:none --contrast l0.01-linear:none --contrast l0.01-cosine:none \
    --contrast l0.01-dropout0.25:none-dropout0.25 \
    --describe none-dropout0.25:none --describe l0.01-dropout0.25:l0.01 \
    --describe l0.01-dropout0.25:none-dropout0.25:l0.01:none
python -m training.report "$OUT/confound" --output "$OUT/report-confound" \
    --describe l0.01-100steps:l0.05-100steps --describe l0.01-2000steps:l0.05-2000steps \
    --contrast l0.01-2000steps:l0.05-100steps
