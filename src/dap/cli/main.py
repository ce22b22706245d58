"""The command `dap`: it finds the verb, runs the verb, writes errors as sentences, and sets the exit status.

This module imports neither torch nor pydantic, so `dap --help` and a misspelt verb are answered at once. The module of
a verb is imported only when the verb is asked for.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownCommandError

from dap import __version__
from dap.base import disk
from dap.base.errors import DapError
from dap.base.permission import allow_code, command_line
from dap.base.registry import suggest
from dap.cli import signals
from dap.cli.flags import OTHERS, Output, Told, output_of, plain
from dap.cli.verbs import VERBS

DONE, MISTAKE, USAGE = 0, 1, 2

ABOUT = "Distil a small training set from a pre-trained diffusion model, and judge it. Start with: dap demo"

ENDS = """\
Every verb takes --json (one JSON object on standard output and nothing else), --quiet (no progress and no text) and --debug \
(the full trace of an error). The variable NO_COLOR=1 switches colours off.

Exit status: 0 the work is done; 1 something that was given is wrong, and the message says what; 2 the command line cannot be \
read; 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP) the work was interrupted, and the same command goes on with it.

Completion: dap --install-completion (bash, zsh, fish)."""


def build_app() -> App:
    """The command with all its verbs. No module of a verb is imported yet."""
    app = App(
        name="dap",
        help=ABOUT,
        usage="Usage: dap VERB [FLAGS]",
        version=f"dap {__version__}",
        help_format="plaintext",
        help_epilogue=f"{ENDS}\n",
        group_commands=OTHERS,
        default_parameter=Parameter(negative=(), allow_repeating=True),
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    for place, (name, verb) in enumerate(VERBS.items()):
        app.command(
            f"dap.cli.{verb.home}",
            name=name,
            help=verb.says,
            usage=f"Usage: dap {name} {verb.usage}",
            group=verb.group,
            sort_key=place,
            show=bool(verb.says),
            help_epilogue="\n".join(["Examples:", *(f"  {example}" for example in verb.examples), ""]),
        )
    says = "Let the shell complete verbs, flags and values; --shell bash, zsh or fish names it."
    app.command("dap.cli.completion:install", name="--install-completion", help=says)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after `dap`. Default: the words of this process's command line.

    Returns:
        The exit status: 0 the work is done, 1 a user's mistake, 128 and the number of a signal: interrupted by it, or 141:
        nobody reads the output any more. `dap check` also returns 1 if a finding is wrong.

    Raises:
        SystemExit: the command line cannot be read; the status is 2.
    """
    _write_anything()
    # Without this line, pydantic looks for plugins in the metadata of every package. This takes longer than a help page.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--debug"] and len(words) > 1:  # the older place of the flag, before the verb
        words[:2] = [words[1], "--debug"]
    if (empty := _empty(words)) is not None:
        said = f"an empty word stands {empty}; is a variable of the shell unset?"
        _refuse(words, said)
    app = build_app()
    if not words or words[0] in ("--help", "-h") or (words[0] in VERBS and {"--help", "-h"} & set(words)):
        app.help_print(words[:1] if words and words[0] in VERBS else [])
        return DONE
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        _unreadable(words, error)
    import logging

    output = output_of(bound.arguments.get("output"))
    logging.basicConfig(format="dap: %(message)s", level=logging.ERROR if output.quiet else logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if argv is None:  # the process is ours
        signals.at_work()
        _tell_encoding()
    try:
        with command_line(words), allow_code(_allows_code(bound.arguments)):
            status = _show(command(*bound.args, **bound.kwargs), output)
        return UNREAD if _unread() else status
    except Exception as error:
        if _unread():
            return UNREAD
        if (said := _in_words(error)) is None:
            raise
        return _fail(output, said)
    except KeyboardInterrupt:
        _close_bars()
        sys.stderr.write(f"\ndap: interrupted. {signals.KEPT}\n")
        return signals.status()


def _tell_encoding() -> None:
    """Warn where Python reads the names of files in another encoding than UTF-8, as in an older locale. Then a name in UTF-8 that
    has other letters than English ones looks broken, and advice to rename the file would be wrong."""
    if (encoding := sys.getfilesystemencoding().lower()) not in ("utf-8", "utf8"):
        import logging

        logging.getLogger("dap").warning(
            "the language settings of this shell make Python read file names as %s, not UTF-8, so names with letters such as ä "
            "or 猫 look broken; run export PYTHONUTF8=1 first",
            encoding,
        )


UNREAD = 128 + 13
"""The exit status where nobody reads the output any more, as after `| head -5`: that of a command that SIGPIPE ends."""


def _unread() -> bool:
    """Whether nobody reads the output any more. What is left of it then goes nowhere, without a word."""
    try:
        sys.stdout.flush()
        place = sys.stdout.fileno()
        asked = select.poll()
        asked.register(place, 0)
        if not any(event & select.POLLERR for _, event in asked.poll(0)):
            return False
    except BrokenPipeError:
        place = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # no file, as in a notebook, or a system without poll
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, place)
    os.close(nowhere)
    return True


def _in_words(error: Exception) -> str | None:
    """What went wrong, in a sentence; None for an error that nobody has thought of."""
    if isinstance(error, DapError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return "Out of memory. What was made is kept; use fewer --reals, a smaller --block, or a larger --vram if you gave one."
    found = error if isinstance(error, OSError) else disk.refusal(error)
    return None if found is None else disk.told(found)


def _allows_code(given: Mapping[str, Any]) -> bool:
    """Whether `--allow-code` was given. Files are read before a verb has its `Machine`."""
    return bool(given.get("allow_code") or (given.get("machine") or {}).get("allow_code"))


def _show(told: Any, output: Output) -> int:
    """Write the result of a verb, and return the exit status. A verb that returns no `Told` writes nothing here."""
    _close_bars()
    if not isinstance(told, Told):
        return DONE
    if output.json:
        print(_json(plain(told.values)))
    elif not output.quiet:
        print(told.text)
    return told.status


def _fail(output: Output, message: str) -> int:
    """Write in a sentence what went wrong. Under `--debug`, raise the exception again instead."""
    _close_bars()
    if output.debug:
        raise
    if output.json:
        print(_json({"error": message}))
    sys.stderr.write(f"dap: error: {message}\n")
    return MISTAKE


def _unreadable(words: Sequence[str], error: CycloptsError) -> NoReturn:
    """Write in one line why a command line cannot be read, name the nearest verb or flag, and end with status 2."""
    if isinstance(error, UnknownCommandError):
        unknown = next((word for word in words if word != "--debug"), "")
        said = f"There is no verb {unknown!r}. {suggest(unknown, [name for name, v in VERBS.items() if v.says])}"
    elif isinstance(error, MissingArgumentError) and error.argument is not None and not error.tokens_so_far:
        name = error.argument.name
        given = any(word == one or word.startswith(f"{one}=") for word in words for one in error.argument.names)
        said = f"{name} has no value" if given else f"{name} is missing"
    else:
        error.verbose = False
        said = " ".join(str(error).split())
    _refuse(words, said)


def _refuse(words: Sequence[str], said: str) -> NoReturn:
    verb = f"dap {words[0]}" if words and words[0] in VERBS else "dap"
    if "--json" in words:
        print(_json({"error": said}))
    end = "" if said.endswith((".", "?", "!")) else "."
    sys.stderr.write(f"{verb}: error: {said}{end} {verb} --help lists what can be given.\n")
    raise SystemExit(USAGE)


TEXTS = ("--negative-prompt", "--template", "--ask", "--title", "--licence")
"""Flags whose value may be an empty text. An empty path would mean the current folder."""


def _empty(words: Sequence[str]) -> str | None:
    """Where an empty word stands that means nothing, in words; None where there is none."""
    for place, word in enumerate(words):
        before = words[place - 1] if place else "dap"
        flag, mark, value = word.partition("=")
        if not word and before not in TEXTS:
            return f"after {before}"
        if word.startswith("--") and mark and not value and flag not in TEXTS:
            return f"after {word}"
    return None


def _write_anything() -> None:
    """Let the output take every name. A letter that the terminal cannot show is written as an escape, such as \\u72d7."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _json(value: Any) -> str:
    """JSON that the terminal can show: its letters as they are, or as JSON's own escapes where it lacks one."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return json.dumps(value)
    return text


def _close_bars() -> None:
    """Remove all progress bars from the terminal, so that the next line stands by itself."""
    if bars := sys.modules.get("dap.cli.bars"):
        bars.close()


if __name__ == "__main__":
    sys.exit(main())
