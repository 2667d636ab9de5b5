# For gpu.sh and gpu_chain.sh: where output goes, which interpreter, and wheels where nothing can be downloaded.

set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-/tmp/gpu}
PYTHON=${PYTHON:-python3}
QUICK=$([ "${1:-}" = --quick ] && echo 1 || echo 0)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT"
: > "$OUT/summary.txt"

if compgen -G ".whl/*.whl" > /dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" \
        .whl/*.whl && export PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
fi
