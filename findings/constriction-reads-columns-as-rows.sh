#!/usr/bin/env bash
# constriction reads a matrix of probabilities that lies column by column in memory as if it lay row by row.
#
# Guessed: an array of numpy is its values; how they lie in memory (order "C" or "F") makes a function slower or raises.
# Seen, with constriction 0.5.0: RangeDecoder.decode(Categorical(perfect=False), table) returns other symbols for the same
#   table in order "F", without an error; np.ascontiguousarray(table) gives the right ones. numpy returns such arrays from
#   many functions, such as np.diff of a transposed array.
# What follows: vqvae2/compression/coder.py makes each table contiguous.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet constriction==0.5.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import constriction
import numpy as np

stream, draws = constriction.stream, np.random.default_rng(0)
model = stream.model.Categorical(perfect=False)
table = draws.dirichlet(np.ones(8), 500).astype(np.float32)
symbols = draws.integers(0, 8, 500).astype(np.int32)
encoder = stream.queue.RangeEncoder()
encoder.encode(symbols, model, table)
words = encoder.get_compressed()
wrong = {}
for order in "CF":
    try:
        back = stream.queue.RangeDecoder(words).decode(model, np.asarray(table, order=order))
        wrong[order] = int((back != symbols).sum())
    except Exception as error:
        wrong[order] = type(error).__name__
print("constriction", constriction.__version__ if hasattr(constriction, "__version__") else "0.5.0", "- symbols that come back wrong, by order:", wrong)
raise SystemExit(0 if wrong["C"] == 0 and isinstance(wrong["F"], int) and wrong["F"] > 0 else 1)
EOF
