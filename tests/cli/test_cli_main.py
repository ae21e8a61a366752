"""The command as a whole: help, arguments, exit codes, what goes to which stream."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixdec import __version__
from pixdec.cli.models import Models
from pixdec.cli.report import Report, explained, one_line

Run = Callable[..., Any]
VERBS = ("upscale", "decode", "encode", "models", "convert", "inspect")
HEAVY = ("torch", "numpy", "PIL", "tqdm", "huggingface_hub", "diffusers", "transformers")
SOURCE = str(Path(__file__).resolve().parents[2] / "src")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=60
    )


def test_help_is_light_and_lists_the_verbs() -> None:
    code = (
        "import sys, time; start = time.process_time(); from pixdec.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: print('code', stop.code)\n"
        f"print('heavy', [m for m in {HEAVY} if m in sys.modules]); print('s', time.process_time() - start)"
    )
    done = python("-c", code)
    assert done.stderr == ""
    assert "code 0" in done.stdout
    assert "heavy []" in done.stdout
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.count("\n") - 3 < 24  # one screen, without the lines that this test prints
    seconds = re.search(r"s ([\d.]+)", done.stdout.rpartition("heavy")[2])
    assert seconds is not None
    assert float(seconds.group(1)) < 1  # of processor time, which a busy machine does not stretch; 0.2 measured


def test_python_m_pixdec_returns_the_exit_code() -> None:
    done = python("-m", "pixdec", "models", "now")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pixdec: Unrecognized options: now; see pixdec models --help\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run: Run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: pixdec {verb}")


def test_a_stage_of_training_has_help_before_its_recipe_is_named(run: Run) -> None:
    outcome = run("train", "decoder", "--help")
    assert outcome.code == 0
    assert "tiny" in outcome.out


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"pixdec {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["upscale, encode, decode", "see pixdec --help"]),
        (["enhance"], ["enhance: no such verb", "see pixdec --help"]),
        (["upscale", "a.png"], ["--output", "see pixdec upscale --help"]),
        (["upscale", "a.png", "-o"], ["--output", "see pixdec upscale --help"]),
        (["upscale", "-o", "out"], ["no input"]),
        (["upscale", "a.png", "-o", "b.png", "--sede", "3"], ["--sede", "see pixdec upscale --help"]),
        (["upscale", "a.png", "-o", "b.png", "--steps", "many"], ["--steps", "many"]),
        (["upscale", "a.png", "-o", "b.png", "--dtype", "int8"], ["int8", "float32"]),
        (["upscale", "a.png", "-o", "b.png", "--strength", "0.9"], ["--strength 0.9", "0.8"]),
        (["upscale", "a.png", "-o", "b.png", "--strength", "nan"], ["--strength nan", "0.8"]),
        (["decode", "a.safetensors", "-o", "b.tiff"], ["b.tiff", ".png"]),
        (["encode", "a.png", "-o", "b.png"], ["b.png", ".safetensors"]),
        (["encode", "a.png", "-o", "b", "--space", "flux3"], ["'flux3'", "flux1, flux2"]),
        (["convert", "a.pth"], ["OUT.safetensors", "see pixdec convert --help"]),
        (["models", "now"], ["now", "see pixdec models --help"]),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    run(*arguments).refused(*words)


def failing(error: BaseException) -> Callable[[Models], int]:
    def fail(self: Models) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "pixdec: two lines\n"),
        (ValueError(), "pixdec: ValueError\n"),
        (FileNotFoundError(2, "No such file or directory", "x.pth"), "pixdec: x.pth: No such file or directory\n"),
        (OSError("cannot write x"), "pixdec: cannot write x\n"),
    ],
)
def test_library_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    monkeypatch.setattr(Models, "run", failing(error))
    outcome = run("models")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", line)


def test_what_nobody_foresaw_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "run", failing(RuntimeError("a bug\nand more")))
    run("models").refused("unexpected RuntimeError: a bug; PIXDEC_TRACEBACK=1")
    monkeypatch.setenv("PIXDEC_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        run("models")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_says_what_helps(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(Models, "run", failing(error))
    run("models").refused("out of memory", "--memory", "--tile")


def test_an_argument_of_python_is_named_as_the_option() -> None:
    assert explained(ValueError("decoder_steps=0: expected 1")) == "--decoder-steps 0: expected 1"
    assert explained(ValueError("memory='8' is 8 bytes")) == "--memory 8 is 8 bytes"
    assert explained(ValueError("a.png: no image, size=3: x")) == "a.png: no image, size=3: x"


def test_old_spellings_are_taken_and_said(run: Run, tmp_path: Path) -> None:
    outcome = run(
        "upscale", tmp_path / "no.png", "-o", tmp_path / "out.png", "--caption=x", "--refine", 0, "--quantise", "int8"
    )
    assert outcome.err.splitlines()[:3] == [
        "pixdec: note: --caption is called --prompt now; the old name goes with the next release",
        "pixdec: note: --refine does nothing any more; it goes with the next release",
        "pixdec: note: --quantise is called --quantize now; the old name goes with the next release",
    ]
    assert "no such file" in outcome.err.splitlines()[-1]


def test_an_interruption_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "run", failing(KeyboardInterrupt()))
    outcome = run("models")
    assert (outcome.code, outcome.err) == (130, "pixdec: interrupted\n")


def test_warnings_for_people_are_one_line_and_others_are_silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(self: Models) -> int:
        for _ in range(2):
            warnings.warn("a first\nframe", UserWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(Models, "run", warn)
    before = warnings.showwarning
    outcome = run("models")
    assert (outcome.code, outcome.err) == (0, "pixdec: note: a first frame\n")
    assert warnings.showwarning is before


def test_a_reader_that_stops_is_no_error() -> None:
    code = "import sys; sys.argv = ['pixdec', 'models']; from pixdec.cli import main; raise SystemExit(main())"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_a_report_goes_on_after_failures(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(json_lines=True)
    with report.attempt("a.png"):
        raise ValueError("broken")
    with report.attempt("b.png"):
        report.done({"input": "b.png"}, "b")
    with report.attempt("c.png"):
        raise OSError("c.png: gone")
    assert report.exit_code == 2
    captured = capsys.readouterr()
    assert captured.err == "pixdec: a.png: broken\npixdec: c.png: gone\n"
    assert captured.out.splitlines() == [
        '{"input": "a.png", "error": "broken"}',
        '{"input": "b.png"}',
        '{"input": "c.png", "error": "c.png: gone"}',
    ]
    with report.attempt("d.png"):
        raise KeyError("bug")
    assert report.failures == 3
    assert "d.png: unexpected KeyError: 'bug'" in capsys.readouterr().err


def test_silence_in_a_pipe_and_a_summary_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report(json_lines=False)
    report.done({"input": "a"}, "a.png  8x8")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    report.done({"input": "a"}, "a.png  8x8")
    assert capsys.readouterr().out == "a.png  8x8\n"
    assert report.exit_code == 0


def test_one_line_names_the_file_of_a_system_error() -> None:
    assert one_line(OSError(28, "No space left on device", "out.png")) == "out.png: No space left on device"
    assert one_line(OSError(28, "No space left on device")) == "No space left on device"
