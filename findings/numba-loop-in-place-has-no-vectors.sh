#!/usr/bin/env bash
# numba computes an element-wise loop several times slower where the result goes to the array that it comes from.
#
# Guessed: `f(x, x)` is as fast as `f(out, x)`, or a little faster, since it touches half of the memory. With numpy it is:
#   np.negative(x, out=x) takes no longer than np.negative(x, out=out).
# Seen, with numba 0.68.1: one compiled function, `out[i] = …x[i]…`, has a loop with vectors for arrays that do not
#   overlap, and one without for those that do, and chooses at each call. The same array counts as overlapping: the
#   loop below takes 6 times as long (AVX-512, 32-bit numbers), without a word. A second function with one argument,
#   `x[i] = …x[i]…`, has vectors.
# What follows: vqvae2/priors/compiled.py has `_put_elu` for two arrays and `_make_elu` for one.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet numba==0.68.1 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import time

import numba
import numpy as np


@numba.njit
def squashed(out, x):
    for i in range(len(x)):
        out[i] = (x[i] * x[i] + x[i]) * (x[i] - np.float32(0.5)) * x[i] + x[i]


@numba.njit
def squash(x):
    for i in range(len(x)):
        x[i] = (x[i] * x[i] + x[i]) * (x[i] - np.float32(0.5)) * x[i] + x[i]


def least(work, *arrays):
    work(*arrays)
    times = []
    for _ in range(300):
        arrays[-1][:] = start
        began = time.perf_counter()
        work(*arrays)
        times.append(time.perf_counter() - began)
    return min(times)


start = np.linspace(-1, 1, 8192, dtype=np.float32)
x, out = start.copy(), start.copy()
apart, same, alone = least(squashed, out, x), least(squashed, x, x), least(squash, x)
print(f"numba {numba.__version__}: in place / into another array {same / apart:.1f}x with two arguments, "
      f"{alone / apart:.1f}x with one")
raise SystemExit(0 if same / apart > 2 and alone / apart < 2 else 1)
EOF
