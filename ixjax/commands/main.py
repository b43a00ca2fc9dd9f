"""The console command: `ixjax COMMAND [flags]`.

A stage takes every setting of a run and makes one part of it. A preview takes the same settings
and writes nothing. A tool reads an existing run and takes a few settings (`ixjax.commands.tools`).

Exit codes: 2 for bad input (one line), 1 for a full disk or a diverged training, 130 for an
interruption, 75 for a training that was saved on SIGTERM and can be started again (EX_TEMPFAIL of
sysexits.h). Anything else is a bug and prints its traceback.
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
    "prepare": "split the corpus and train the tokenizer",
    "sft": "train policy, simulator and held-out simulator",
    "search": "grow i×MCTS trees and extract preference pairs",
    "dpo": "align the policy",
    "evaluate": "compare the methods on held-out conditions",
    "pipeline": "run all of them in order",
}
PREVIEWS = {"plan": "estimate memory, arithmetic and time of a run"}
TOOLS = {
    "report": "write a run, or a comparison of several, as one page",
    "rate": "let people compare two methods blindly",
    "chat": "talk with a model in the terminal",
    "export": "write a model as a Hugging Face folder",
    "parity": "compare log-probabilities of engine and trainer",
}
COMMANDS = STAGES | PREVIEWS | TOOLS
JOINT = ("sft", "dpo", "export")  # run by several processes together
PREEMPTED = 75  # exit code
LAST_WORDS_SECONDS = 2.0  # in which other processes can print their errors
BAD_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
QUIET = "--quiet"  # of stages
LONG = (*STAGES, "chat")  # commands that profit from huge pages
HUGE_PAGES, TUNABLES = "IXJAX_HUGE_PAGES", "GLIBC_TUNABLES"
CACHE_SWITCH = "IXJAX_COMPILATION_CACHE"  # a folder, or "off"


def main(command: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a stage or a tool and end the process with its exit code.

    Args:
        command: its name; None: the first argument.
        arguments: the command line after the command; default: that of the process.
    """
    started_alone = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if command is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            _usage()
            sys.exit(0 if arguments else 2)
        if arguments[0] in ("-V", "--version"):
            print(f"ixjax {_version()}")
            sys.exit(0)
        command = arguments.pop(0)
    if started_alone and command in LONG:
        _use_huge_pages()
    try:
        _run(command, arguments)
        return
    except BrokenPipeError:  # the reader of the output is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        code, line = _judge(error, command)
        if line is None and not _among_others():
            raise
        print(line or traceback.format_exc(), file=sys.stderr)
        if _among_others() and code != PREEMPTED:
            _leave_others(code)
    # Not in the handler: the error would keep arrays until the interpreter shuts down.
    sys.exit(code)


def _use_huge_pages() -> None:
    """Start this process again with huge pages for large arrays; glibc is told at its start only.

    At each step of a training on a CPU the kernel fills hundreds of megabytes with zeros, in
    pages of 4 kB (docs/benchmarks.md).
    """
    name = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    if os.environ.get(HUGE_PAGES) == "off" or TUNABLES in os.environ or not name:
        return
    if "jax" in sys.modules:  # called by a program that has begun its work
        return
    version = name.removeprefix("glibc ").split(".")
    if all(part.isdecimal() for part in version) and tuple(map(int, version)) >= (2, 35):
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _judge(error: BaseException, command: str) -> tuple[int, str | None]:
    """Return the exit code and the line to print; None for a bug, which prints its traceback."""
    again = "" if command in TOOLS | PREVIEWS else "; run the same command again to continue"
    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, BAD_PATHS):  # a path does not exist, or is of another kind
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
    """Return whether this process is one of several."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _leave_others(code: int) -> NoReturn:
    """End without JAX's shutdown, which waits for processes that may wait for this one."""
    from ixjax import distributed

    if distributed.joined() and distributed.is_first():
        time.sleep(LAST_WORDS_SECONDS)  # JAX ends them when the coordinator ends
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(command: str, arguments: Sequence[str]) -> None:
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {command!r}; expected one of {known}")
    # transformers warns about a missing PyTorch, which is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Heavy imports follow the check of the command, so that errors are quick.
    from rich.console import Console

    module = importlib.import_module(f"ixjax.commands.{command}")
    # Without a terminal tables need a width. Markup would change paths with brackets or colons.
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
    summary = f"{module.SUMMARY} {QUIET} prints only the summary and errors."
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
            reporter.note(f"settings: preset {PRESET} (no --config given) and flags")
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
    """Join other processes if there are any; only the first one prints."""
    from ixjax import distributed

    if command not in JOINT:
        if config.coordinator:
            raise InputError(
                f"--distributed.coordinator is {config.coordinator}; expected none for {command}: "
                f"only {', '.join(JOINT)} run in joined processes. Share a search by "
                "--processes.count and --processes.index"
            )
        found = distributed.cluster(os.environ) if config.detect != "never" else ""
        if found and not shared:
            raise InputError(
                f"{found} has started several processes; expected one for {command}, since each "
                "would do all of it in the same run directory. Start one process, share a search "
                "by --processes.count and --processes.index, or set --distributed.detect never"
            )
        return
    note = distributed.start(config)
    if note is not None:
        console.print(note)
        console.quiet = not distributed.is_first()


def use_compilation_cache() -> None:
    """Cache XLA's compiled programs in the user's cache folder.

    IXJAX_COMPILATION_CACHE names another folder, or is "off". A cache that is configured in JAX is
    kept.
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
        return "(not installed; running from source)"


def _usage() -> None:
    print("usage: ixjax STAGE [--config PATH-or-preset] [--out RUN] [--quiet] [flags]")
    print("       ixjax PREVIEW [--config PATH-or-preset] [--out RUN] [flags]")
    print("       ixjax TOOL [--out RUN] [flags]")
    for kind, commands in (("stages", STAGES), ("previews", PREVIEWS), ("tools", TOOLS)):
        print(f"\n{kind}:")
        for name, what in commands.items():
            print(f"  {name:<10} {what}")
    print("\n`ixjax --version` prints the version.")
    print(
        "`ixjax COMMAND --help` lists every flag. Compiled programs are cached in the user's cache"
    )
    print(f"folder; {CACHE_SWITCH}=FOLDER names another folder, {CACHE_SWITCH}=off turns it off.")


if __name__ == "__main__":
    main()
