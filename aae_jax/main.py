"""Adversarial autoencoders in JAX: train an experiment, score it, draw it.

  python -m aae_jax.main --config configs/digits.py
  python -m aae_jax.main --config configs/digits.py --config.train.epochs=20 --workdir runs/short
  python -m aae_jax.main --mode eval --workdir runs/digits
  python -m aae_jax.main --mode reproduce --config configs/digits.py --seeds 0,1,2
  python -m aae_jax.main --mode gallery

Flags:
  --config FILE[:VARIANT]  the experiment; a field is changed by --config.FIELD=VALUE
  --workdir DIR            where the run lives; default runs/CONFIG. The same command on a
                           folder that holds an unfinished run goes on with it.
  --mode MODE              train (default); eval: score the run in DIR again; figures: draw it
                           again; export: its model, to be used without this package;
                           compare: several finished runs, --workdir DIR,DIR,...;
                           reproduce: train with each of --seeds, a line of RESULTS/CONFIG.csv
                           for each; record: validation scores of the run in DIR, finished or
                           not, into RESULTS/trials/; results: fill the scores of RESULTS.md and
                           README.md in from those lines;
                           gallery: the paper's figures from the finished runs in DIR, default runs;
                           explore: serve a page to walk in the code space of the run in DIR;
                           page: write that page to one file, DIR/explorer.html
  --port N                 of explore, on this machine only; default 5006
  --out DIR                where compare, export and gallery write; default runs/comparison,
                           runs/exported/NAME, the name that of the run's folder, and
                           RESULTS/figures
  --seeds N,N,...          of reproduce; default 0,1,2
  --results DIR            where lines of CSV are kept; default results
  --distributed=MODE       several processes: auto (default; where Slurm, Cloud TPU or the variables
                           JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say so),
                           yes, no; elsewhere --coordinator HOST:PORT, --num_processes N and
                           --process_id I, given to each of them
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from aae_jax import command_line

MODES = (
    *("train", "eval", "figures", "export", "explore", "page", "compare"),
    *("reproduce", "record", "results", "gallery"),
)
_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.")
_OUT = flags.DEFINE_string("out", None, "Where compare, export, gallery write.")
_SEEDS = flags.DEFINE_list("seeds", "0,1,2", "Seeds of reproduce.")
_RESULTS = flags.DEFINE_string("results", "results", "Where lines of CSV are kept.")
_PORT = flags.DEFINE_integer("port", 5006, "Where explore serves.", 1, 65535)
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ("auto", "yes", "no"), "Several processes?")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is.")


def main(argv: Sequence[str]) -> None:
    """Does what the flags say."""
    mode, results = _MODE.value, Path(_RESULTS.value)
    command_line.check(argv, mode, _CONFIG.value, _WORKDIR.value)
    # Imported only now: JAX takes seconds, and --help should not.
    from aae_jax import parallel, program, reproduction

    if mode in ("train", "reproduce"):
        name = command_line.config_name()
        folder = Path(_WORKDIR.value or f"runs/{name}")
        command = "python -m aae_jax.main " + shlex.join(sys.argv[1:])
        processes = parallel.Processes(
            _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
        if mode == "train":
            sys.exit(program.train(_CONFIG.value, folder, command, processes))
        row = reproduction.Recipe(_CONFIG.value, folder, results / f"{name}.csv", command)
        seeds = command_line.seeds(_SEEDS.value)
        sys.exit(reproduction.reproduce(row, seeds, processes))
    if mode == "results":
        sys.exit(reproduction.fill_in_documents(results))
    if mode == "gallery":
        from aae_jax import gallery

        runs, out = Path(_WORKDIR.value or "runs"), Path(_OUT.value or results / "figures")
        sys.exit(gallery.gather(runs, out))
    folders = [Path(folder) for folder in (_WORKDIR.value or "").split(",")]
    if mode == "record":
        sys.exit(reproduction.record(folders, results))
    if mode == "compare":
        sys.exit(program.compare(folders, Path(_OUT.value or "runs/comparison")))
    if mode == "export":
        name = folders[0].resolve().name
        sys.exit(program.export(folders[0], Path(_OUT.value or f"runs/exported/{name}")))
    if mode in ("explore", "page"):
        from aae_jax import explorer

        sys.exit(explorer.show(folders[0], _PORT.value if mode == "explore" else None))
    sys.exit(program.review(folders[0], mode))


parse = command_line.parser(__doc__, _CONFIG)

if __name__ == "__main__":
    app.run(main, flags_parser=parse)
