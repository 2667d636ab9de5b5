#!/usr/bin/env bash
# Everything that is asked of a lent GPU, in one call of at most 10 minutes; all output goes to $OUT.
#
#   OUT=/tmp/gpu bash benchmarks/gpu.sh            # on a machine with a GPU
#   OUT=/tmp/gpu bash benchmarks/gpu.sh --quick    # tiny, on any machine: does the script itself work?
#
# PYTHON chooses the interpreter. Where nothing can be downloaded, put wheels of what is missing into .whl/ before:
#   pip download --no-deps --only-binary=:all: -d .whl tyro docstring-parser typeguard typing-extensions python-dotenv
# Each part has a time limit and the next one runs whatever becomes of it; a table at the end says how each went.

source "$(dirname "$0")/gpu_common.sh"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" > "$OUT/$name.txt" 2>&1
    local status=$?
    grep -E '^ratio|check|images/s|torch [0-9]|Done|rror' "$OUT/$name.txt" | cut -c1-160
    echo "$name: status $status, $((SECONDS - began)) s" >> "$OUT/summary.txt"
}

# 64 pictures a batch, so that a step fills the GPU; the folder is read as any folder of pictures is.
slices() {
    "$PYTHON" - "$WORK/slices" "$1" "$2" <<'PYTHON_END'
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from train import write_images
folder, size, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
write_images(folder / "train", count, size)
write_images(folder / "validate", count // 8, size)
PYTHON_END
}

"$PYTHON" -c 'import platform, torch
print("torch", torch.__version__, "Python", platform.python_version(), "CUDA", torch.version.cuda)
print(*[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no GPU"])' | tee "$OUT/machine.txt"

train=("$PYTHON" train_vqvae.py --dataset folder --data "$WORK/slices" --results "$OUT/results")
if [ "$QUICK" = 1 ]; then
    part sync-check 120 "$PYTHON" benchmarks/train.py --quick --sync-check --compile never
    part quantizer 240 "$PYTHON" benchmarks/quantizer.py --rounds 1 --vectors 2048
    part train 240 "$PYTHON" benchmarks/train.py --quick --compile never
    slices 64 32
    part run 240 "${train[@]}" --batch 4 --epochs 2 --savename gpu-sh --precision auto
else
    part sync-check 90 "$PYTHON" benchmarks/train.py --device cuda --sizes 128 --batch 64 --sync-check --compile never
    part quantizer 90 "$PYTHON" benchmarks/quantizer.py --device cuda
    part train-eager 150 "$PYTHON" benchmarks/train.py --device cuda --rounds 4 --compile never
    part train-compiled 150 "$PYTHON" benchmarks/train.py --device cuda --rounds 4 --sizes 256 --compile always
    part profile 40 "$PYTHON" benchmarks/train.py --device cuda --sizes 256 --profile --compile never
    slices 256 1024
    part run 70 "${train[@]}" --batch 64 --epochs 4 --savename gpu-sh-256 --precision bf16
fi
echo; cat "$OUT/summary.txt"
! grep -qv 'status 0,' "$OUT/summary.txt"
