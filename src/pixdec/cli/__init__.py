"""The command `pixdec`: parse, run one verb, and turn what went wrong into one line and an exit code.

Exit codes: 0 all done, 2 what is named in one line on stderr, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from typing import Any, Protocol

import tyro

from pixdec import __version__
from pixdec.cli.options import GONE_OPTIONS, OLD_OPTIONS
from pixdec.cli.report import explained, tell
from pixdec.io.files import one_line


class Verb(Protocol):
    """A verb: its options as a frozen dataclass, and what it does. Importing one imports nothing heavy."""

    def run(self) -> int:
        """Do it; return the exit code. ValueError and OSError stand for bad input."""
        ...


# name → the class in the module of that name, and what it does
VERBS = {
    "upscale": ("Upscale", "enlarge images, 4 times with most models"),
    "encode": ("Encode", "images to latents"),
    "decode": ("Decode", "latents to images"),
    "generate": ("Generate", "prompts to images, through a diffusers pipeline"),
    "eval": ("Eval", "measure decoders, beside each other and beside baselines"),
    "check": ("Check", "see that a decoder is as good as it was"),
    "judge": ("Judge", "have a model or a person choose between images of two methods"),
    "data": ("Data", "prepare images for training"),
    "train": ("Train", "train a decoder of your own"),
    "l2p": ("L2p", "turn a latent generator into one of pixels"),
    "serve": ("Serve", "decode for others, over HTTP"),
    "page": ("Page", "see what a decoder does to your images, in the browser"),
    "models": ("Models", "list the models that can be named"),
    "inspect": ("Inspect", "say what a checkpoint, a latent or an image is"),
    "env": ("Env", "print versions and devices, for an issue"),
    "convert": ("Convert", "an original checkpoint to safetensors"),
}
HELP = "\n".join(
    [
        "usage: pixdec VERB ...",
        "",
        "Decode latents into images four times larger with a pixel-diffusion decoder.",
        "",
        *(f"  {name:<9} {what}" for name, (_, what) in VERBS.items()),
        "",
        "pixdec VERB --help shows its options; pixdec --version the version.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's) and return its exit code.

    `--help` raises SystemExit, as argument parsers do.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"pixdec {__version__}")
        return 0
    if arguments[:1] in (["--help"], ["-h"]):
        print(HELP)
        raise SystemExit(0)
    try:
        verb = _parse(_current(arguments))
    except ValueError as error:
        tell(one_line(error))
        return 2
    if not sys.stderr.isatty():  # before it is imported: downloads draw progress bars into pipes too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _notes():
        try:
            return verb.run()
        except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            tell("interrupted")
            return 130
        except Exception as error:
            tell(explained(error))
            return 2


def _current(arguments: Sequence[str]) -> list[str]:
    """The arguments with the spellings of today, without options that are gone; a note says so."""
    found, left = list[str](), iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name in GONE_OPTIONS:
            tell(f"note: {name} does nothing any more; it goes with the next release")
            _ = equals or next(left, "")
            continue
        if name in OLD_OPTIONS:
            tell(f"note: {name} is called {OLD_OPTIONS[name]} now; the old name goes with the next release")
        found.append(f"{OLD_OPTIONS.get(name, name)}{equals}{value}")
    if found[:1] == ["train"] and found[2:3] == ["nano"] and found[1] != "l2p":
        tell("note: the recipe nano is now called tiny: the paper's network in small")
        found[2] = "tiny"
    return found


def _parse(arguments: list[str]) -> Verb:
    """Arguments → verb.

    Raises:
        ValueError: what is wrong with them, in one line.
    """
    name = arguments[0] if arguments else ""
    if name not in VERBS:
        wrong = f"{name}: no such verb" if name else "no verb is named"
        raise ValueError(f"{wrong}; expected {', '.join(VERBS)}; see pixdec --help")
    module = import_module(f"pixdec.cli.{name}")
    rest = arguments[1:]
    with _refusing(f"see pixdec {name} --help"):
        if name == "train" and rest[:1] not in ([], ["--help"], ["-h"]):
            return module.parse(rest)
        kind: Callable[..., Verb] = getattr(module, VERBS[name][0])
        return tyro.cli(
            kind, prog=f"pixdec {name}", args=rest, config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
        )


@contextlib.contextmanager
def _refusing(see: str) -> Generator[None]:
    """tyro explains a mistake in a box of many lines; here it is a ValueError of one."""

    def refuse(event: Any) -> None:
        raise ValueError(f"{_mistake(event)}; {see}")

    box = io.StringIO()
    try:
        from tyro._errors import on_parse_error  # pyright: ignore[reportPrivateUsage]  # as its documentation says

        told = on_parse_error(refuse)
    except ImportError:  # an older tyro
        told = contextlib.nullcontext()
    try:
        with told, contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"arguments that do not fit; {see}") from stop
        raise


def _mistake(event: Any) -> str:
    kind, argument = type(event).__name__, getattr(event, "argument", None)
    name = "" if argument is None else argument.display_name()
    if kind == "MissingArgs":
        missing = [each.arg for each in event.missing_arguments]
        names = ["" if each.is_positional() else f"{each.display_name()} " for each in missing]
        metavars = [each.lowered.metavar or "" for each in missing]
        return f"Missing: {', '.join(name + metavar for name, metavar in zip(names, metavars, strict=True))}"
    if kind == "UnrecognizedArgs":
        return f"Unrecognized options: {' '.join(event.tokens)}"
    if kind == "InvalidChoice":
        choices = ", ".join(choice for choice in event.choices if choice != "None")
        return f"{name} {event.value}: expected one of {choices}"
    if kind == "MissingSubcommand":
        return f"expected one of {', '.join(event.subcommand_spec.parser_from_name)}"
    if kind == "InstantiationFailure":
        return f"{name}: {event.message}" if name else event.message
    return f"{name}: a value is missing" if name else "arguments that do not fit"


@contextlib.contextmanager
def _notes() -> Generator[None]:
    """Warnings meant for the person are one line on stderr, each text once; others are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.filterwarnings("ignore", module=r"(huggingface_hub|torchao)\b")
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    tell(f"note: {one_line(message)}")


__all__ = ["main"]
