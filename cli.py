"""The commands ``card-profile``, ``card-solve`` and ``card-train``: their start, their exit codes, and what a signal does.

What each command takes stands in ``profiler/commands.py``, ``solver/commands.py`` and ``split/commands.py``. Nothing heavy is imported at the top: ``--help`` answers at once, and ``card-solve`` never loads torch.
Exit codes: 0 done, 1 a fault of ours, 2 bad input or usage, 3 hardware or a permission is missing, 130 stopped by a signal. A reader that goes away (`| head`, a pager) is no failure. `--version` tells the release.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

# Typer brings its own copy of click or uses the installed one, by release; the class is found through what it exports.
_ClickException: Any = typer.BadParameter.__mro__[2]


_stopping = False
"""A signal has asked us to stop."""


_ASK_AGAIN_S = 1.0


def _stop(signum: int, frame: object) -> None:
    """Stop the program. Libraries may swallow an exception, so it is asked for again, unless the stop is on its way."""
    global _stopping
    _stopping = True
    if signum == signal.SIGALRM and _on_its_way(sys.exc_info()[1]):
        return
    signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S, _ASK_AGAIN_S)
    raise KeyboardInterrupt


def _on_its_way(error: BaseException | None) -> bool:
    """Whether the exception being handled is the stop, or came of it: clocks are being given back just now."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _catch_signals() -> None:
    """Stop at SIGINT, SIGTERM and SIGHUP, wherever the program is.

    SIGINT is caught even where a script's ``&`` has left it ignored, for a stop must give clocks back and keep results; SIGHUP
    that is ignored stays so, since that is what ``nohup`` is for.
    """
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)
    # Python swallows an exception in a destructor. A stop that happened to arrive in one is asked for again.
    signal.signal(signal.SIGALRM, _stop)
    before = sys.unraisablehook

    def swallowed(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02, _ASK_AGAIN_S)
        else:
            before(what)

    sys.unraisablehook = swallowed


def _say(command: str, text: str) -> None:
    from profiler.profile import printable

    # One line, and names out of files cannot steer the terminal.
    print(f"{command}: {printable(' '.join(text.split()))}", file=sys.stderr)


class _Lasting(io.FileIO):
    """Standard output or error, whose reader (a pager, head) may go: nothing is wrong then.

    Results are printed when the work is done, so without their reader the program is done; without one for its messages it
    goes on. This stands below all others, for rich and Typer each end the program with 1 where they see a broken pipe. A full
    disk under the results is told once, in one line.
    """

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() != 1:
                return super().write(data)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(0) from None
            from profiler.profile import BadInput

            raise BadInput(f"standard output: cannot be written: {error.strerror or error}") from None


def _open_what_is_closed() -> None:
    """A closed descriptor from 0 to 2 would be the next file's that is opened, and what is printed would land in that."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(
                sys,
                name,
                io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8", "replace", write_through=True),
            )


def _outlast_readers() -> None:
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # somebody else's in its place
        stream.flush()
        raw = _Lasting(stream.fileno(), "w", closefd=False)
        lasting = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)


def _ignore_signals() -> None:
    """What is left to do takes no time, and a second stop in it must change neither the message nor the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _print_in_any_encoding() -> None:
    """A terminal that is not UTF-8 gets a ``?`` for what it lacks (standard error does so by itself): hours of measuring end well all the same."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _main(app: typer.Typer, command: str) -> int:
    _catch_signals()
    _open_what_is_closed()
    _print_in_any_encoding()
    _outlast_readers()
    try:
        return _run(app, command)
    except KeyboardInterrupt:  # a second stop, at the moment at which the first was told of
        return 130
    finally:
        _ignore_signals()
        # What was printed before a failure may find no room; that failure has been told, and its exit code counts.
        with contextlib.suppress(Exception, SystemExit):
            sys.stdout.flush()


def _run(app: typer.Typer, command: str) -> int:
    try:
        result = app(standalone_mode=False, prog_name=command)
        if _stopping:  # newer releases of Typer take the stop for an exit with 130
            return _stopped(command)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(command)
    except Exception as error:
        # A library may turn the stop into an error of its own (an import that was interrupted, for one).
        return _stopped(command) if _stopping else _failed(command, error)


def _stopped(command: str) -> int:
    # Nothing is imported here: the stop may have come in the middle of an import.
    _ignore_signals()
    print(f"{command}: stopped", file=sys.stderr)
    return 130


def _failed(command: str, error: Any) -> int:
    from profiler.profile import BadInput, MissingHardware

    if isinstance(error, _ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        _say(command, error.format_message() + hint)
        return 2
    if isinstance(error, BadInput):
        _say(command, str(error))
        return 2
    if isinstance(error, MissingHardware):
        _say(command, str(error))
        return 3
    if isinstance(error, PermissionError) and error.filename is not None and not os.environ.get("CARD_TRACEBACK"):
        _say(command, f"{error.filename}: permission denied; expected a right of this user's to it")
        return 3
    if os.environ.get("CARD_TRACEBACK"):
        raise error
    _say(command, f"a fault of ours: {type(error).__name__}: {error} (CARD_TRACEBACK=1 shows where)")
    return 1


def _tell_version(context: typer.Context, asked: bool) -> None:
    if asked:
        from profiler import __version__

        print(f"{context.command_path} {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """What each of the programs takes before its commands."""


def profile_app() -> typer.Typer:
    """``card-profile`` with all its commands: a link is measured over the stream that training uses, which the profiler does not know."""
    from profiler.commands import profile_app as app
    from split.commands import link

    if all(command.name != "link" for command in app.registered_commands):
        app.command("link")(link)
    return app


def _start(app: typer.Typer, command: str) -> int:
    app.callback()(_program)
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    return _main(app, command)


def profile_main() -> None:
    """Entry point of ``card-profile``."""
    sys.exit(_start(profile_app(), "card-profile"))


def solve_main() -> None:
    """Entry point of ``card-solve``."""
    from solver.commands import solve_app

    sys.exit(_start(solve_app, "card-solve"))


def train_main() -> None:
    """Entry point of ``card-train``."""
    from split.commands import train_app

    sys.exit(_start(train_app, "card-train"))
