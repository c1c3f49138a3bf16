"""Reading the command line: what the flag library says badly, said in one line."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_flags

from aae_jax.config import ConfigError, check_field
from aae_jax.workdir import run_name


def parser(doc: str, config: flags.FlagHolder) -> Callable[[Sequence[str]], list[str]]:
    """A parser for `absl.app.run` that prints `doc` for --help and one line for a bad flag."""

    def parse(argv: Sequence[str]) -> list[str]:
        if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
            print(doc)
            sys.exit(0)
        logging.set_verbosity(logging.ERROR)
        chosen = _config_argument(argv)
        try:
            if chosen is not None:
                _check_config_arguments(chosen, argv)
            rest = flags.FLAGS(argv)
            if chosen is not None:
                config.value.lock()  # raises for whatever was loaded in a ConfigDict's place
            return rest
        except Exception as error:  # a config file is a program: anything may come out of it
            fail(_reason(error, chosen))

    return parse


def check(argv: Sequence[str], mode: str, config: object, workdir: str | None) -> None:
    """Ends the program with one line unless the mode has what it needs."""
    if len(argv) > 1:
        fail(f"{argv[1]} is no flag; see --help")
    if mode in ("train", "reproduce"):
        if config is None:
            fail("--config is missing, for example --config configs/digits.py; see --help")
        if "://" in (workdir or ""):
            fail(f"--workdir {workdir} is no folder; mount the bucket and name its folder")
    elif mode not in ("results", "gallery") and workdir is None:
        fail(f"--mode {mode} needs the --workdir of a run")


def config_name() -> str:
    """The config's file and variant as one name: configs/digits.py is "digits"."""
    return run_name(config_flags.get_config_filename(flags.FLAGS["config"]))


def seeds(texts: Sequence[str]) -> list[int]:
    """The seeds of --seeds; ends the program with one line if they are not numbers."""
    if not texts or not all(text.strip().isdecimal() for text in texts):
        fail(f"--seeds {','.join(texts)}: allowed are numbers such as 0,1,2")
    return [int(text) for text in texts]


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


def fail(message: str) -> NoReturn:
    """Ends the program with one line and the status 2."""
    print(f"aae_jax: {message}", file=sys.stderr)
    sys.exit(2)
