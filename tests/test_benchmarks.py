"""Benchmarks that reach into the trainer still run; their figures are not looked at here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_checks_of_a_gpu_that_make_training_steps_one_by_one_run_on_the_cpu(tmp_path):
    checks = ["no-wait", "profile"]
    ended = subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", tmp_path, "--quick", "--only",
                            *checks], capture_output=True, text=True, timeout=300)
    found = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert [(check["name"], check["status"]) for check in found] == [(name, 0) for name in checks], (
        tmp_path / "log.txt").read_text()
    assert ended.returncode == 0, ended.stdout
