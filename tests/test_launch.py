"""The launch scripts, as far as they can be checked without a cluster."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import yaml

from aae_jax import main as command_line
from aae_jax import parallel

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


def jobset_annotations(job_set, job, number):
    """What JobSet writes on the only pod of a replica (https://jobset.sigs.k8s.io)."""
    name, prefix = job_set["metadata"]["name"], "jobset.sigs.k8s.io"
    meeting = job_set["spec"]["coordinator"]
    host = f"{name}-{meeting['replicatedJob']}-{meeting['jobIndex']}-{meeting['podIndex']}"
    return {
        f"{prefix}/jobset-name": name,
        f"{prefix}/replicatedjob-name": job["name"],
        f"{prefix}/replicatedjob-replicas": str(job["replicas"]),
        f"{prefix}/job-index": str(number),
        f"{prefix}/coordinator": f"{host}.{name}",
    }


def pod_environment(container, annotations):
    """A container's variables, as Kubernetes makes them of annotations and of earlier ones."""
    environ = {}
    for each in container["env"]:
        if "value" in each:
            value = re.sub(r"\$\((\w+)\)", lambda name: environ[name[1]], each["value"])
        else:
            path = each["valueFrom"]["fieldRef"]["fieldPath"]
            value = annotations[re.fullmatch(r"metadata\.annotations\['(.+)'\]", path)[1]]
        environ[each["name"]] = value
    return environ


@pytest.mark.parametrize("pods", [2, 1, 5])
def test_kubernetes_tells_its_processes_of_each_other(pods, monkeypatch):
    job_set = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert job_set["kind"] == "JobSet"
    (job,) = job_set["spec"]["replicatedJobs"]
    if pods == 2:
        assert job["replicas"] == 2
    job["replicas"] = pods
    assert job["name"] == job_set["spec"]["coordinator"]["replicatedJob"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 1, "a replica is a pod"
    (container,) = spec["template"]["spec"]["containers"]
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **fields: joined.append(fields))
    for number in range(pods):
        environ = pod_environment(container, jobset_annotations(job_set, job, number))
        parallel.start(parallel.Processes(), environ | {"JOB_COMPLETION_INDEX": "0"})
    if pods == 1:
        assert not joined, "a single process is left alone"
        return
    assert [fields["process_id"] for fields in joined] == list(range(pods))
    assert {fields["num_processes"] for fields in joined} == {pods}
    (address,) = {fields["coordinator_address"] for fields in joined}
    host, port = address.split(":")
    assert host == "aae-jax-workers-0-0.aae-jax"
    assert int(port) in [each["containerPort"] for each in container["ports"]]


def test_a_pods_command_is_python_with_known_flags_and_its_disk():
    job_set = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    pod = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-u", "-m", "aae_jax.main"], "SIGTERM reaches Python"
    used = {word[2:].split("=")[0].split(".")[0] for word in container["args"]}
    assert used == {"config", "workdir"} and used <= known_flags()
    config, *_ = (word.split("=")[1] for word in container["args"])
    assert (LAUNCH.parent / config).exists()
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
