"""The launch files: what a Slurm job and a Kubernetes pod do when a training is stopped, done, wrong or broken.

Slurm's commands are small stand-ins on PATH. The training is a real one of two processes where it matters, and a line
of shell where only the end of it does.
"""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from pasted import commands_in, settings_of
from test_restarts import (
    EPOCHS,
    GLOBAL_BATCH,
    ROOT,
    TINY,
    Launched,
    assert_same_end,
    free_port,
    state_of,
    wait_for_mid_epoch,
)
from test_restarts import slices as slices
from test_restarts import undisturbed as undisturbed
from torch.distributed.run import parse_args, parse_min_max_nnodes

STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@" & echo $! > "$FAKE/step"; wait $!',
    "scancel": 'until [ -s "$FAKE/step" ]; do sleep 0.01; done; echo "scancel $*" >> "$FAKE/calls"; '
               'kill -TERM "$(cat "$FAKE/step")"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$FAKE/calls"; fi',
    "squeue": 'cat "$FAKE/job_state"',
    # Stands for python where a test says with a line of shell what the training does.
    "python": '''case $2 in
        vqvae2) cat "$FAKE/stands" && grep -q "^finished" "$FAKE/stands" ;;
        torch.distributed.run) eval "$TRAINING" ;;
    esac'''}
ASKED, REQUEUED = "scancel --signal=TERM 7.0", "scontrol requeue 7"
UNTIL_TERM = 'trap "exit 1" TERM; echo training; while true; do sleep 0.05; done'
ENDS = {  # what the training does -> status of a Slurm job, of a pod, and whether the job is requeued
    "it finishes": ('echo "finished: 4 of 4 epochs" > "$FAKE/stands"', 0, 0, False),
    "a user's error": ('echo "--size 3: expected 8 to 4096" > "$VQVAE2_USER_ERROR_FILE"; exit 1', 2, 2, False),
    "a failure that got further": ('echo "not finished: 9 steps" > "$FAKE/stands"; exit 1', 75, 143, True),
    "a failure at once": ("exit 1", 1, 1, False)}
each_end = pytest.mark.parametrize(("does", "slurm_status", "pod_status", "requeued"), ENDS.values(), ids=ENDS)


@pytest.fixture
def fake(tmp_path) -> Path:
    """A folder of stand-ins; `calls` lists what they were asked."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job_state").write_text("RUNNING\n")
    return tmp_path


def calls(fake: Path) -> list[str]:
    return (fake / "calls").read_text().splitlines() if (fake / "calls").exists() else []


def path_with(fake: Path) -> str:
    return f"{fake}{os.pathsep}{os.environ['PATH']}"


def slurm_job(fake: Path, **environment: str) -> Launched:
    """launch/slurm.sbatch as Slurm would start it, on one node."""
    return Launched(["bash", "launch/slurm.sbatch"], fake / "log.txt", **{
        "PATH": path_with(fake), "FAKE": str(fake), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1]",
        "SLURM_JOB_NUM_NODES": "1", "SAVENAME": "x", "RESULTS": str(fake / "results"), "PYTHON": str(fake / "python"),
        **environment})


def real_job(fake: Path, slices: Path, *more: str) -> Launched:
    """The same with two real processes, as test_restarts.py trains them."""
    words = [*TINY[2:], "--data", str(slices), "--batch", str(GLOBAL_BATCH // 2), *more]
    return slurm_job(fake, PYTHON=sys.executable, PROCESSES="2", PORT=str(free_port()),
                     SETTINGS=" ".join(words))


def test_usr1_saves_everything_and_requeues_once_and_the_second_start_finishes_bitwise_as_if_undisturbed(
        fake, slices, undisturbed):
    with real_job(fake, slices) as job:
        wait_for_mid_epoch(fake / "results", job)
        os.kill(job.process.pid, signal.SIGUSR1)
        assert job.status() == 75, job.printed()[-6000:]
    assert calls(fake) == [ASKED, REQUEUED]
    stopped_at = int(re.search(r"Stopped by a signal at step (\d+), all saved", job.printed())[1])
    assert state_of(fake / "results")["step"] == stopped_at < EPOCHS * 30
    with real_job(fake, slices) as job:
        assert job.status() == 0, job.printed()[-6000:]
    assert calls(fake) == [ASKED, REQUEUED], "a finished run was requeued"
    assert f"finished: {EPOCHS} of {EPOCHS} epochs" in job.printed()
    assert_same_end(fake / "results", undisturbed)


def test_a_users_error_is_in_the_log_and_is_not_requeued(fake, slices):
    with real_job(fake, slices, "--embedding-dim", "0") as job:
        assert job.status() == 2, job.printed()[-6000:]
    assert "not requeued, only you can mend this: --embedding-dim: expected 2 to 16384, found 0." in job.printed()
    assert calls(fake) == []


@each_end
def test_a_job_that_ends_by_itself_is_requeued_only_where_that_can_help(fake, does, slurm_status, pod_status, requeued):
    with slurm_job(fake, TRAINING=does) as job:
        assert job.status() == slurm_status, job.printed()
    assert calls(fake) == [REQUEUED] * requeued


def test_a_job_that_is_cancelled_saves_and_is_not_requeued(fake):
    with slurm_job(fake, TRAINING=UNTIL_TERM) as job:
        job.wait_for("training")
        (fake / "job_state").write_text("COMPLETING\n")
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.status() == 75, job.printed()
    assert calls(fake) == [ASKED]


def test_a_job_asked_to_stop_before_its_first_save_is_requeued(fake):
    with slurm_job(fake, TRAINING=UNTIL_TERM) as job:
        job.wait_for("training")
        os.kill(job.process.pid, signal.SIGUSR1)
        assert job.status() == 75, job.printed()
    assert calls(fake) == [ASKED, REQUEUED]


def test_slurm_is_told_what_the_requeueing_needs():
    asked = re.findall(r"^#SBATCH (\S+)", (ROOT / "launch" / "slurm.sbatch").read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= set(asked)


@pytest.mark.parametrize(("began", "handled"), [("", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"),
                                                ("trap '' HUP; ", "SIGTERM,SIGINT,SIGQUIT,SIGUSR1")])
def test_torchrun_on_two_hosts_forwards_each_signal_but_one_that_nohup_ignores(fake, began, handled):
    (fake / "python").write_text(f"#!{shutil.which('bash')}\n"
                                 f'[ "$1" != - ] || exec "{sys.executable}" "$@"\n'
                                 'echo "$PET_SIGNALS_TO_HANDLE $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\n')
    with Launched(["bash", "-c", f"{began}launch/two_hosts.sh localhost -- x"], fake / "log.txt",
                  PYTHON=str(fake / "python")) as run:
        assert run.status() == 0, run.printed()
    assert run.printed() == f"{handled} 90\n"


@pytest.fixture(scope="module")
def documents() -> dict[str, dict]:
    """The parts of launch/pytorchjob.yaml, by kind."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the Kubernetes file; it is among the extras of dev")
    return {part["kind"]: part for part in yaml.safe_load_all((ROOT / "launch" / "pytorchjob.yaml").read_text())}


@pytest.fixture
def pod(documents) -> dict:
    return documents["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def test_a_pods_volumes_exist_and_decoded_images_have_room_in_shared_memory(documents, pod):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounted) == set(volumes)
    assert mounted["shm"] == "/dev/shm"
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    claim = documents["PersistentVolumeClaim"]
    assert volumes["results"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_pod_has_time_to_save_comes_back_after_preemption_and_has_no_privileges(documents, pod):
    environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert pod["terminationGracePeriodSeconds"] > int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30
    assert documents["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "ExitCode"
    for container in pod["containers"]:
        assert container["securityContext"]["privileged"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_pods_command_is_one_that_torchrun_and_the_script_take(documents, pod, monkeypatch):
    policy = documents["PyTorchJob"]["spec"]["elasticPolicy"]
    nodes = (policy["minReplicas"], policy["maxReplicas"])
    monkeypatch.setenv("PET_NNODES", "{}:{}".format(*nodes))  # as the operator does
    monkeypatch.setenv("PET_MAX_RESTARTS", str(policy["maxRestarts"]))
    for container in pod["containers"]:
        words, = commands_in(container["args"][0].replace("exec python", "python"))
        launched = parse_args(words[words.index("torch.distributed.run") + 1:])
        assert parse_min_max_nnodes(launched.nnodes) == nodes
        assert int(launched.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
        settings = settings_of(words, monkeypatch)
        assert f"folder={settings.results}/{settings.dataset}/{settings.savename}\n" in container["args"][0]
        mounts = [Path(mount["mountPath"]).name for mount in container["volumeMounts"]]
        assert {str(settings.results), str(settings.data)} <= set(mounts)


def container(fake: Path, pod: dict, training: str) -> Launched:
    container = pod["containers"][0]
    return Launched([*container["command"], *container["args"]], fake / "log.txt", PATH=path_with(fake), FAKE=str(fake),
                    TRAINING=training)


@each_end
def test_a_pods_status_says_whether_to_make_it_again(fake, pod, does, slurm_status, pod_status, requeued):
    with container(fake, pod, does) as run:
        assert run.status() == pod_status, run.printed()


def test_a_pod_that_is_evicted_saves_and_is_made_again(fake, pod):
    with container(fake, pod, UNTIL_TERM) as run:
        run.wait_for("training")
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.status() == 143, run.printed()
