"""`pixdec generate`: prompts → latents of a diffusers pipeline, stopped early → images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import AS_IT_IS, Json, Output, Run, check_device
from pixdec.cli.report import Report, progress
from pixdec.cli.targets import Job
from pixdec.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from pixdec.generation.generate import Generation
    from pixdec.generation.items import Result
    from pixdec.generation.pixel_generation import PixelGeneration
    from pixdec.generation.prompts import Prompt


@dataclass(frozen=True)
class PromptOptions:
    """What a run is to make."""

    prompt: str | None = None
    """What to generate."""
    prompts: str | None = None
    """A file of prompts: one a line, or .jsonl with {"prompt", "name", "seed", "negative", "height", "width"}."""

    def given(self) -> str | list[Prompt]:
        """ValueError unless one of them is given."""
        if self.prompt is not None and self.prompts is None:
            from pixdec.generation.prompts import Prompt

            return [Prompt(self.prompt, "--prompt")]
        if self.prompts is None or self.prompt is not None:
            what = "neither is given" if self.prompt is None else "both are given"
            raise ValueError(f"expected --prompt TEXT or --prompts FILE: {what}")
        return self.prompts


Asked = Annotated[PromptOptions, tyro.conf.arg(name="")]
NOTHING = PromptOptions()


@dataclass(frozen=True)
class Generate:
    """Generate images from prompts: a diffusers pipeline, stopped early, and a decoder that makes its images large.

    pixdec-nano enlarges what the pipeline's own VAE decodes; decoders of latents take the place of that VAE.

    An image that is in the output already is not made again, so a run that was interrupted or had failures goes on when
    it is called again.
    """

    output: Output
    """A folder: it is created. For one --prompt also an image file (.png, .webp, .jpg)."""
    by: Annotated[GenerationSettings, tyro.conf.arg(name="")]
    what: Asked = NOTHING
    how: Run = AS_IT_IS
    json: Json = False

    def run(self) -> int:
        prompts = self.what.given()
        if self.by.ray is None:
            check_device(self.by.device)
        from pixdec.generation.generate import Generation

        return make_all(Generation(prompts, self.output, self.by, self.how.config()), json_lines=self.json)


def make_all(run: Generation | PixelGeneration, *, json_lines: bool) -> int:
    """Make what is missing and tell what became of each; the exit code."""
    report = Report(json_lines=json_lines)
    left = {each.item for each in run.todo}
    there = [Job(Path(item.name), run.want.files(item)[0]) for item in run.items if item not in left]
    report.skip(there, len(run.items))
    with progress(len(run.todo), "image") as bar:
        for result in run:
            _tell(result, report)
            bar.update()
    return report.exit_code


def _tell(result: Result, report: Report) -> None:
    if result.error is not None:
        report.failed(result.name, result.error)
        return
    record: dict[str, object] = {"input": result.name, "output": str(result.image or result.latent)}
    if result.size is None:
        record["shape"] = list(result.shape)
        summary = "x".join(map(str, result.shape))
    else:
        record |= {"width": result.size[1], "height": result.size[0]}
        record |= {} if result.latent is None else {"latent": str(result.latent)}
        summary = f"{result.size[1]}x{result.size[0]}"
    seconds = result.seconds
    report.done(
        {**record, "seconds": seconds, "settings": result.settings}, f"{record['output']}  {summary}  {seconds:.1f} s"
    )
