"""Several processes of one run on this machine, as on the hosts of a pod: to try out and to test.

  python launch/local_processes.py --processes 2 -- --config configs/digits.py

Everything after -- goes to each `python -m aae_jax.main`. On CPU every process has --devices
devices; on GPUs it has the one of its number. SIGTERM and Ctrl-C reach all of them. The exit status
is 0 if all ended well, otherwise that of the first one that did not; the rest are given a minute to
notice, then killed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

GRACE_SECONDS = 60


def commands(processes: int, coordinator: str, arguments: Sequence[str]) -> list[list[str]]:
    """The command of each process."""
    return [
        [
            *(sys.executable, "-u", "-m", "aae_jax.main", *arguments),
            f"--coordinator={coordinator}",
            f"--num_processes={processes}",
            f"--process_id={number}",
        ]
        for number in range(processes)
    ]


def environment(number: int, devices: int, platform: str) -> dict[str, str]:
    """What a process sees: its own share of the machine's devices."""
    own = {"JAX_PLATFORMS": platform}
    if platform == "cpu":
        own["JAX_NUM_CPU_DEVICES"] = str(devices)
    else:
        own["CUDA_VISIBLE_DEVICES"] = str(number)
    return {**os.environ, **own}


def run(processes: int, devices: int, platform: str, arguments: Sequence[str]) -> int:
    """Runs all of them to their end; the exit status."""
    coordinator = f"127.0.0.1:{_free_port()}"
    started = [
        subprocess.Popen(
            command,
            env=environment(number, devices, platform),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, command in enumerate(commands(processes, coordinator, arguments))
    ]

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    readers = [
        threading.Thread(target=_show, args=(number, process))
        for number, process in enumerate(started)
    ]
    for reader in readers:
        reader.start()
    status = _wait(started)
    for reader in readers:
        reader.join()
    return status


def _wait(started: Sequence[subprocess.Popen[str]]) -> int:
    failed_at, status = None, 0
    while True:
        codes = [process.poll() for process in started]
        if failed_at is None and any(codes):
            failed_at, status = time.monotonic(), next(code for code in codes if code)
        if None not in codes:
            return status
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for process in started:
                process.kill()
        time.sleep(0.1)


def _show(number: int, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("arguments", nargs="+", help="after --: the flags of aae_jax.main")
    chosen = parser.parse_args()
    if min(chosen.processes, chosen.devices) < 1:
        parser.error("--processes and --devices must be at least 1")
    return run(chosen.processes, chosen.devices, chosen.platform, chosen.arguments)


if __name__ == "__main__":
    sys.exit(main())
