"""The console command: `ixjax COMMAND [flags]`.

A stage makes a part of a run, and takes every setting of the run. A preview takes them too, and
makes nothing. A tool uses what is there, and takes a few settings of its own
(`ixjax.commands.tools`).

Bad input ends with one line and exit code 2, a full disk or a diverged training with 1, an
interruption with 130, a training that SIGTERM told to save and leave with 75 (EX_TEMPFAIL of
sysexits.h: to be started again); anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ixjax.io import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ixjax.distributed import DistributedConfig

STAGES = {
    "prepare": "corpus to splits and tokenizer",
    "sft": "train policy, simulator and held-out simulator",
    "search": "i×MCTS, and preference pairs from its trees",
    "dpo": "align the policy",
    "evaluate": "compare the methods on held-out users",
    "pipeline": "all of them in turn",
}
PREVIEWS = {"plan": "memory, arithmetic and time that a run would take"}
TOOLS = {
    "report": "a run, or several beside each other, as one page",
    "rate": "people compare two methods blindly",
    "chat": "talk with a model in the terminal",
    "export": "a model as a Hugging Face folder",
    "parity": "compare what the engine and the trainer compute",
}
COMMANDS = STAGES | PREVIEWS | TOOLS
JOINT = ("sft", "dpo", "export")  # what several processes do together
PREEMPTED = 75  # exit code
LAST_WORDS_SECONDS = 2.0  # that process 0 leaves the others to say what they found wrong
BAD_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
QUIET = "--quiet"  # of stages
CACHE_SWITCH = "IXJAX_COMPILATION_CACHE"  # a folder, or "off"


def main(command: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a stage or a tool and end the process with its exit code.

    Args:
        command: which one; None takes it from the command line.
        arguments: the command line behind the command; default that of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if command is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            _usage()
            sys.exit(0 if arguments else 2)
        if arguments[0] in ("-V", "--version"):
            print(f"ixjax {_version()}")
            sys.exit(0)
        command = arguments.pop(0)
    try:
        _run(command, arguments)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        code, told = _judge(error, command)
        if told is None and not _among_others():
            raise
        print(told or traceback.format_exc(), file=sys.stderr)
        if _among_others() and code != PREEMPTED:
            _leave_others(code)
        sys.exit(code)


def _judge(error: BaseException, command: str) -> tuple[int, str | None]:
    """Exit code and what a person is told; None: all of it, since it is a bug."""
    again = "" if command in TOOLS | PREVIEWS else "; run the same command again to continue"
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, BAD_PATHS):  # where a person's path leads nowhere, or into a file
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return 2, f"error: {named}"
    if isinstance(error, (OSError, FloatingPointError)):  # a full disk, a training that diverged
        return 1, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted{again}"
    from ixjax.training import Preempted

    if isinstance(error, Preempted):
        return PREEMPTED, f"{error}{again}"
    return 1, None


def _among_others() -> bool:
    """Whether this process works together with others."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave_others(code: int) -> NoReturn:
    """End at once: at an orderly end JAX waits for the others, and they may wait for this one."""
    from ixjax import distributed

    if distributed.joined() and distributed.is_first():
        time.sleep(LAST_WORDS_SECONDS)  # JAX ends them when their coordinator is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(command: str, arguments: Sequence[str]) -> None:
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {command!r}; expected one of {known}")
    # What transformers says of PyTorch, which nothing here needs, is no matter of the person's.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Heavy imports wait until it is known that there is work to do.
    from rich.console import Console

    module = importlib.import_module(f"ixjax.commands.{command}")
    # Tables keep their columns where no terminal says how wide it is; a path stays a path, whatever
    # brackets and colons it has.
    width = None if sys.stdout.isatty() else 180
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    run = {**dict.fromkeys(TOOLS, _run_tool), **dict.fromkeys(PREVIEWS, _run_preview)}
    run.get(command, _run_stage)(command, module, arguments, console)


def _run_stage(stage: str, module: Any, arguments: Sequence[str], console: Console) -> None:
    from ixjax.commands.arguments import PRESET, parse, take
    from ixjax.commands.progress import ProgressReporter
    from ixjax.distributed import first_then_others
    from ixjax.pipeline import RunConfig, open_run

    quiet = QUIET in arguments
    arguments = [argument for argument in arguments if argument != QUIET]
    summary = f"{module.SUMMARY} {QUIET} prints the summary and errors alone."
    config = parse(RunConfig, arguments, stage=stage, summary=summary)
    use_compilation_cache()
    shared = stage == "search" and config.processes.count > 1
    _join_others(stage, config.distributed, console, shared=shared)
    reporter = ProgressReporter(console, quiet=quiet)
    try:
        with first_then_others("the run directory is opened"):
            run = open_run(config)
        reporter.note(f"run {run.directory.root} on {run.devices}")
        if take(arguments, "--config")[0] is None:
            reporter.note(f"settings: those of the preset {PRESET}, but for flags (no --config)")
        module.execute(run, reporter, console)
    finally:
        reporter.close()


def _run_preview(preview: str, module: Any, arguments: Sequence[str], console: Console) -> None:
    from ixjax.commands.arguments import parse

    settings = parse(module.Settings, arguments, stage=preview, summary=module.SUMMARY)
    module.execute(settings, console)


def _run_tool(tool: str, module: Any, arguments: Sequence[str], console: Console) -> None:
    from ixjax.commands.tools import parse_tool

    settings, run = parse_tool(module.Settings, arguments, tool=tool, summary=module.SUMMARY)
    use_compilation_cache()
    if tool in JOINT:
        _join_others(tool, settings.distributed, console)
    module.execute(settings, run, console)


def _join_others(
    command: str, config: DistributedConfig, console: Console, *, shared: bool = False
) -> None:
    """Work with other processes from here on, where there are any; the first one alone prints."""
    from ixjax import distributed

    if command not in JOINT:
        if config.coordinator:
            raise InputError(
                f"distributed.coordinator is {config.coordinator}, but no processes work together "
                f"in {command} (they do in {', '.join(JOINT)}); `ixjax search` is shared by "
                "--processes.count and --processes.index"
            )
        found = distributed.cluster(os.environ) if config.detect != "never" else ""
        if found and not shared:
            raise InputError(
                f"{found} has started several processes, each of which would do all of {command} "
                "in one run directory: start one, share a search by --processes.count and "
                "--processes.index, or set --distributed.detect never"
            )
        return
    told = distributed.start(config)
    if told is not None:
        console.print(told)
        console.quiet = not distributed.is_first()


def use_compilation_cache() -> None:
    """Keep what XLA compiled for the next start, under the user's cache folder.

    IXJAX_COMPILATION_CACHE names another folder, or is "off"; a cache that the user has set up for
    JAX itself stays as it is.
    """
    import jax
    import platformdirs

    place = os.environ.get(CACHE_SWITCH, "")
    if place == "off" or (not place and jax.config.values["jax_compilation_cache_dir"]):
        return
    folder = Path(place) if place else Path(platformdirs.user_cache_dir("ixjax")) / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _version() -> str:
    try:
        return importlib.metadata.version("ixjax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: read from its sources)"


def _usage() -> None:
    print("usage: ixjax STAGE [--config PATH-or-preset] [--out RUN] [--quiet] [flags]")
    print("       ixjax PREVIEW [--config PATH-or-preset] [--out RUN] [flags]")
    print("       ixjax TOOL [--out RUN] [flags]")
    for kind, commands in (("stages", STAGES), ("previews", PREVIEWS), ("tools", TOOLS)):
        print(f"\n{kind}:")
        for name, what in commands.items():
            print(f"  {name:<10} {what}")
    print("\n`ixjax --version` tells the version.")
    print("`ixjax COMMAND --help` lists every flag. Compiled programs are kept in the user's cache")
    print(f"folder; {CACHE_SWITCH}=FOLDER keeps them elsewhere, {CACHE_SWITCH}=off not at all.")


if __name__ == "__main__":
    main()
