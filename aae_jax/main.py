"""Adversarial autoencoders in JAX: train an experiment, score it, draw it.

  python -m aae_jax.main --config configs/digits.py
  python -m aae_jax.main --config configs/digits.py --config.train.epochs=20 --workdir runs/short
  python -m aae_jax.main --mode eval --workdir runs/digits

Flags:
  --config FILE[:VARIANT]  the experiment; a field is changed by --config.FIELD=VALUE
  --workdir DIR            where the run lives; default runs/CONFIG. The same command on a
                           folder that holds an unfinished run goes on with it.
  --mode MODE              train (default); eval: score the run in DIR again; figures: draw it
                           again; compare: several finished runs, --workdir DIR,DIR,...
  --out DIR                where compare writes; default runs/comparison
  --distributed=MODE       several processes: auto (default; where Slurm or Cloud TPU say so), yes,
                           no; elsewhere --coordinator HOST:PORT, --num_processes N and
                           --process_id I, given to each of them
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from aae_jax.config import ConfigError, check_field

MODES = ("train", "eval", "figures", "compare")
_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_OUT = flags.DEFINE_string("out", "runs/comparison", "Where compare writes.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ("auto", "yes", "no"), "Several processes?")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is.")


def main(argv: Sequence[str]) -> None:
    """Does what the flags say."""
    command = "python -m aae_jax.main " + shlex.join(sys.argv[1:])
    if len(argv) > 1:
        _fail(f"{argv[1]} is no flag; see --help")
    if _MODE.value == "train":
        if _CONFIG.value is None:
            _fail("--config is missing, for example --config configs/digits.py; see --help")
        # Imported only now: JAX takes seconds, and --help should not.
        from aae_jax import parallel, program

        processes = parallel.Processes(
            _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
        if "://" in (_WORKDIR.value or ""):
            _fail(f"--workdir {_WORKDIR.value} is no folder; mount the bucket and name its folder")
        folder = Path(_WORKDIR.value or _default_workdir())
        sys.exit(program.train(_CONFIG.value, folder, command, processes))
    if _WORKDIR.value is None:
        _fail(f"--mode {_MODE.value} needs the --workdir of a run")
    from aae_jax import program

    if _MODE.value == "compare":
        folders = [Path(folder) for folder in _WORKDIR.value.split(",")]
        sys.exit(program.compare(folders, Path(_OUT.value)))
    sys.exit(program.review(Path(_WORKDIR.value), _MODE.value))


def _default_workdir() -> str:
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return str(Path("runs") / "-".join(filter(None, [Path(file).stem, variant.replace("/", "_")])))


def _parse(argv: Sequence[str]) -> list[str]:
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        print(__doc__)
        sys.exit(0)
    logging.set_verbosity(logging.ERROR)
    chosen = _config_argument(argv)
    try:
        if chosen is not None:
            _check_config_arguments(chosen, argv)
        rest = flags.FLAGS(argv)
        if chosen is not None:
            _CONFIG.value.lock()  # raises for whatever was loaded in a ConfigDict's place
        return rest
    except Exception as error:  # a config file is a program: anything may come out of it
        _fail(_reason(error, chosen))


def _config_argument(argv: Sequence[str]) -> str | None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            return following if match[1] is None else match[1]
    return None


def _check_config_arguments(chosen: str, argv: Sequence[str]) -> None:
    """The flag library's own words on these are hard to read."""
    file = chosen.partition(":")[0]
    if not os.path.isfile(file):
        raise ConfigError(f"--config {chosen}: there is no file {file!r}; see configs/")
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match:
            check_field(match[1])


def _reason(error: BaseException, chosen: str | None) -> str:
    """What went wrong, in one line; the flag library puts whole tracebacks into its messages."""
    while "Traceback (most recent" in str(error) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    text = " ".join(str(error).split())
    if isinstance(error, flags.Error | ConfigError):
        return text
    return f"--config {chosen} cannot be loaded: {type(error).__name__}: {text}"


def _fail(message: str) -> NoReturn:
    print(f"aae_jax: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
