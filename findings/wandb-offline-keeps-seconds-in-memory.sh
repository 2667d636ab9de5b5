#!/usr/bin/env bash
# wandb 0.31.0, offline: what was logged in the last seconds before a kill is on no disk, however often it was logged.
#
# Guessed: in offline mode each `run.log` is in the run's file at once, or at the latest a second later, as with
# TensorBoard's writer after `flush`. There is no flush to call.
# Seen (Python 3.11, Linux): a process logs a row a second for ten seconds and is killed with SIGKILL. The file
# `run-*.wandb` is there and holds its header of 7 bytes: none of the ten rows. After 40 seconds most rows are there,
# and those of the last seconds, up to 15, are not.
# So a training that must lose nothing keeps its own table of rows, and sends those that a service lacks again.
#
# Exits 1 if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --no-warn-script-location --disable-pip-version-check "wandb==0.31.0"
cat > log.py <<'PYTHON'
import os
import signal
import sys
import time

import wandb

run = wandb.init(project="a", mode="offline", dir=sys.argv[1])
for row in range(int(sys.argv[2])):
    run.log({"loss": 1000 + row}, step=row)
    time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
PYTHON
for rows in 10 40; do
    mkdir "after-$rows"
    WANDB_SILENT=true venv/bin/python log.py "after-$rows" "$rows" 2>/dev/null || true
    sleep 2  # the service process of wandb, which writes, ends after its client
done
cat > count.py <<'PYTHON'
import glob
import sys

(path,) = glob.glob(f"{sys.argv[1]}/wandb/offline-run-*/*.wandb")
content = open(path, "rb").read()  # values are text in it
print(sum(str(1000 + row).encode() in content for row in range(int(sys.argv[2]))))
PYTHON
few=$(venv/bin/python count.py after-10 10)
more=$(venv/bin/python count.py after-40 40)
echo "rows on the disk: $few of 10, $more of 40; bytes after 10 rows: $(stat -c %s after-10/wandb/offline-run-*/*.wandb)"
[ "$few" -eq 0 ] && [ "$more" -gt 0 ] && [ "$more" -lt 40 ]
