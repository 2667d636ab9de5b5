#!/usr/bin/env bash
# torchrun started by nohup ends when its terminal closes, and takes its workers with it.
#
# Guessed: nohup lets SIGHUP be ignored, every child inherits that, and Python leaves an ignored signal alone; so a
#   training that was started with `nohup torchrun …` goes on after the ssh connection is gone, as `nohup python …` does.
# Seen, with torch 2.13.0: a program started by `nohup python` ignores a SIGHUP and ends with 0. The same program under
#   `nohup python -m torch.distributed.run` is stopped: the launcher sets its own handler for SIGHUP, whatever it has
#   inherited, so that its workers no longer ignore the signal either; it ends them, and itself with 1 and a
#   SignalException.
# What follows: start torchrun in a session of its own (`setsid`, tmux, a scheduler), or leave HUP out of the signals
#   that it handles, where its version has such a setting.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/worker.py" <<'PYTHON'
import time

print("at work", flush=True)
time.sleep(10)
print("done", flush=True)
PYTHON
cd "$work"
nohup venv/bin/python worker.py > alone.log 2>&1 &
alone=$!
nohup venv/bin/python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=1 worker.py > launched.log 2>&1 &
launched=$!
for log in alone.log launched.log; do
    for _ in $(seq 240); do
        grep -q "at work" "$log" && break
        sleep 0.25
    done
done
kill -HUP "$alone" "$launched"
status_alone=0 status_launched=0
wait "$alone" || status_alone=$?
wait "$launched" || status_launched=$?
echo "nohup python: status $status_alone, $(grep -c '^done' alone.log || true) worker done"
echo "nohup torchrun: status $status_launched, $(grep -c '^done' launched.log || true) worker done"
grep -m1 -o 'SignalException: Process [0-9]* got signal: 1' launched.log | sed 's/Process [0-9]*/Process N/' || true
[ "$status_alone" = 0 ] && grep -q '^done' alone.log && [ "$status_launched" != 0 ] && ! grep -q '^done' launched.log
