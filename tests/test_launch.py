"""The launch scripts, as far as they can be checked without a cluster."""

import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from aae_jax import main as command_line

LAUNCH = Path(__file__).parents[1] / "launch"


def dry(*arguments, **settings):
    """The commands that tpu_pod.sh would run, as lists of words."""
    result = subprocess.run(
        [LAUNCH / "tpu_pod.sh", *arguments],
        env={**os.environ, "DRY_RUN": "1", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return [shlex.split(line) for line in result.stdout.splitlines()]


def known_flags():
    return set(re.findall(r"--(\w+)", command_line.__doc__)) | {"num_processes", "process_id"}


@pytest.fixture
def local():
    path = LAUNCH / "local_processes.py"
    spec = importlib.util.spec_from_file_location("local_processes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pod_is_created_with_its_type_in_its_zone():
    (command,) = dry("create", TPU_NAME="seven", ZONE="mars-1", TYPE="v5litepod-32", SPOT="0")
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "seven"]
    assert "--zone=mars-1" in command and "--accelerator-type=v5litepod-32" in command
    assert "--spot" not in command
    (command,) = dry("create")
    assert "--spot" in command


def test_the_code_goes_to_all_workers_and_is_installed_there():
    copy, install, mount = dry("install", BUCKET="pail")
    assert copy[4] == "scp" and "--worker=all" in copy
    assert "--worker=all" in install
    assert "pip install -q -e 'aae_jax[tpu]'" in install[-1]
    assert "gcsfuse --implicit-dirs pail shared" in mount[-1]
    assert len(dry("install")) == 2, "nothing is mounted without a bucket"


def test_a_run_reaches_all_workers_with_its_flags_as_given():
    (command,) = dry("run", "--config", "configs/digits.py", "--config.style.prior=petals(modes=5)")
    assert command[4] == "ssh" and "--worker=all" in command
    remote = shlex.split(command[-1].removeprefix("--command="))
    assert remote[:2] == ["cd", "aae_jax"]
    assert remote[remote.index("-m") :] == [
        *("-m", "aae_jax.main", "--distributed=yes", "--config", "configs/digits.py"),
        "--config.style.prior=petals(modes=5)",
    ]


def test_the_home_folder_is_the_workers():
    (command,) = dry("run", "--workdir", "~/shared/runs/my run")
    assert command[-1].endswith("--workdir ~/shared/runs/my\\ run")


def test_a_wrong_verb_explains_itself():
    result = subprocess.run([LAUNCH / "tpu_pod.sh", "fly"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "launch/tpu_pod.sh create" in result.stdout


def test_kubernetes_counts_its_processes_alike_everywhere():
    job_set = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert job_set["kind"] == "JobSet"
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    settings = {each["name"]: each["value"] for each in container["env"]}
    assert spec["completionMode"] == "Indexed", "this gives each pod its JOB_COMPLETION_INDEX"
    assert str(spec["parallelism"]) == str(spec["completions"]) == settings["NUM_PROCESSES"]
    words = container["args"][0].split()
    assert words[0] == "exec", "SIGTERM must reach Python"
    flags = dict(itertools.pairwise(words))
    # https://jobset.sigs.k8s.io: JOBSET-JOB-REPLICA-INDEX.JOBSET is the host of a pod.
    name = job_set["metadata"]["name"]
    host, port = flags["--coordinator"].split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert int(port) in [each["containerPort"] for each in container["ports"]]
    assert flags["--process_id"] == '"$JOB_COMPLETION_INDEX"'
    used = {word[2:].split("=")[0].split(".")[0] for word in words if word.startswith("--")}
    assert used <= known_flags()
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def sbatch(tmp_path, *arguments, report=False):
    """What the job runs, where srun and scontrol only say how they are called."""
    for name in ("srun", "scontrol"):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        fake.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    if report:
        (run / "report.html").write_text("<html>")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", *arguments],
        env={**os.environ, "PATH": path, "SLURM_JOB_ID": "77"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_slurm_job_is_queued_again_until_there_is_a_report(tmp_path, form):
    run = str(tmp_path / "run")
    workdir = ["--workdir", run] if form == "two words" else [f"--workdir={run}"]
    result = sbatch(tmp_path, "--config", "configs/digits.py", *workdir)
    first, *rest = result.stdout.splitlines()
    flags = " ".join(["--config", "configs/digits.py", *workdir])
    assert first.endswith(f"python -u -m aae_jax.main {flags}")
    assert rest == ["scontrol requeue 77"]
    finished = sbatch(tmp_path, "--config", "configs/digits.py", *workdir, report=True)
    assert "requeue" not in finished.stdout


def test_a_slurm_job_needs_a_folder(tmp_path):
    result = sbatch(tmp_path, "--config", "configs/digits.py")
    assert result.returncode != 0 and "give --workdir" in result.stderr
    assert result.stdout == ""


def test_slurm_ends_jobs_with_the_signal_that_saves():
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --signal=TERM@" in text and "#SBATCH --requeue" in text


def test_local_processes_differ_in_their_number_only(local):
    first, second = local.commands(2, "127.0.0.1:1234", ["--config", "configs/digits.py"])
    assert first[0] == sys.executable
    assert [a for a in first if a not in second] == ["--process_id=0"]
    assert [a for a in second if a not in first] == ["--process_id=1"]
    assert "--num_processes=2" in first and "--coordinator=127.0.0.1:1234" in first


def test_a_local_process_sees_its_own_devices(local):
    assert local.environment(1, 3, "cpu")["JAX_NUM_CPU_DEVICES"] == "3"
    assert local.environment(1, 3, "cuda")["CUDA_VISIBLE_DEVICES"] == "1"


def test_the_status_of_the_first_failure_is_that_of_all(local, monkeypatch, capfd):
    script = "import sys, time; number = int(sys.argv[1]); time.sleep(2 * number); sys.exit(number)"

    def commands(processes, coordinator, arguments):
        return [[sys.executable, "-c", script, str(number)] for number in range(processes)]

    monkeypatch.setattr(local, "commands", commands)
    assert local.run(1, 1, "cpu", []) == 0
    assert local.run(2, 1, "cpu", []) == 1


def test_who_does_not_notice_a_failure_is_killed(local, monkeypatch):
    scripts = ["import time; time.sleep(60)", "import sys; print('gone'); sys.exit(3)"]

    def commands(processes, coordinator, arguments):
        return [[sys.executable, "-c", script] for script in scripts]

    monkeypatch.setattr(local, "commands", commands)
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)
    began = time.monotonic()
    assert local.run(2, 1, "cpu", []) == 3
    assert time.monotonic() - began < 30


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_shellcheck_finds_nothing(script):
    result = subprocess.run(["shellcheck", LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
