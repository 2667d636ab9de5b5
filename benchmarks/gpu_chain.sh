#!/usr/bin/env bash
# The whole chain at 256 x 256 on a lent GPU, in one call of at most 10 minutes; weights, pictures and figures go to $OUT.
#
#   DATA=data/slices-256 OUT=/tmp/gpu bash benchmarks/gpu_chain.sh            # on a machine with a GPU
#   DATA=data/slices-64 OUT=/tmp/gpu bash benchmarks/gpu_chain.sh --quick     # tiny, anywhere: does the script work?
#
# DATA is what extract_slices.py has made: python extract_slices.py --out data/slices-256 --per-scan 20.
# PYTHON chooses the interpreter; for missing packages see gpu.sh. A training that its limit stops has saved its state
# and its best weights, and the next part goes on with those.

source "$(dirname "$0")/gpu_common.sh"
DATA=${DATA:-data/slices-256}

part() {  # part NAME SECONDS COMMAND...; SIGTERM lets a training save what it has
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout --signal=TERM --kill-after=30 "$limit" "$PYTHON" "$@" > "$OUT/$name.txt" 2>&1
    echo "$name: status $?, $((SECONDS - began)) s" | tee -a "$OUT/summary.txt"
}

runs="$WORK/results/oasis"
common=(--dataset oasis --data "$DATA" --results "$WORK/results" --pictures-every 1000)
models=(--vqvae "$runs/vqvae" --top "$runs/top" --bottom "$runs/bottom")
if [ "$QUICK" = 1 ]; then
    limits=(300 300 300 300 300 300) sizes=(--channels 8 --layers 2 --heads 2) epochs=(2 1 1) batches=(32 32 32) count=2
    vqvae=(--channels 16 --residual-channels 8 --codebook-size 32 --start-steps 5)
else
    limits=(200 90 150 40 40 60) sizes=(--channels 192 --layers 10) epochs=(120 60 25) batches=(32 32 16) count=64
    vqvae=(--codebook-size 256)
fi
part vqvae "${limits[0]}" train_vqvae.py "${common[@]}" --batch "${batches[0]}" --epochs "${epochs[0]}" \
    --savename vqvae "${vqvae[@]}"
for level in top bottom; do
    i=$([ "$level" = top ] && echo 1 || echo 2)
    part "$level" "${limits[$i]}" train_pixel_cnn.py --level "$level" --vqvae "$runs/vqvae" "${common[@]}" --copies 2 \
        --condition position_mm --batch "${batches[$i]}" --epochs "${epochs[$i]}" --savename "$level" "${sizes[@]}"
done
part sample "${limits[3]}" sample.py "${models[@]}" --count "$count" --batch 64 --out "$OUT/samples"
part evaluate "${limits[4]}" evaluate.py "${models[@]}" --data "$DATA" --out "$OUT/report" --samples "$count"
if [ "$QUICK" = 0 ]; then
    part sampling "${limits[5]}" benchmarks/sampling.py --device cuda --full --priors top bottom --sides 32 64
fi
for run in vqvae top bottom; do  # weights come back, training states would be too large
    mkdir -p "$OUT/$run" && cp "$runs/$run/model.safetensors" "$runs/$run/log.csv" "$OUT/$run/"
done
cat "$OUT/summary.txt"
! grep -qv 'status 0,' "$OUT/summary.txt"
