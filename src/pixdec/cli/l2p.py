"""`pixdec l2p`: prompts, and a source's images of them; a latent generator → a pixel model to train; what was trained →
a whole model; prompts → images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, Literal

import tyro

from pixdec.cli.generate import NOTHING, Asked, make_all
from pixdec.cli.options import Dtype, Json, Output, check_device, torch_dtype
from pixdec.cli.report import Report, progress
from pixdec.generation.settings import PixelGenerationSettings, SynthesisSettings
from pixdec.io.files import prepare, write_whole


@dataclass(frozen=True)
class Init:
    """Make a pixel model to train of a latent generator, or of a pixel model of smaller patches.

    Every tensor of the same name and shape is copied; the patch embedder and the head are new.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Z-Image, FLUX.2 klein or Qwen-Image by hub id or folder, a file of Z-Image or of a pixel model, or l2p-1k."""
    output: Output
    """The file to write, .safetensors."""
    patch: int = 16
    """Pixels a side: 16 for images of 1024, 64 for 4096, 128 for 8192, 160 for 10240."""
    shallow: int = 5
    """How many main blocks at either end are to be trained; it is counted here, and set when training begins."""
    seed: int = 42
    """Of what is new."""
    dtype: Dtype | None = None
    """Precision of the file; without it each tensor keeps its own."""
    json: Json = False

    def run(self) -> int:
        from pixdec.l2p.model import PixelModel, shallow_only
        from pixdec.l2p.transfer import transplant
        from pixdec.l2p.weight_files import open_weights, save_weights

        _check_target(self.output)
        made, report = transplant(open_weights(self.source), self.patch, self.seed)
        trained = set(shallow_only(PixelModel(made.settings), self.shallow))
        prepare([Path(self.output)])
        save_weights(made, self.output, torch_dtype(self.dtype))
        learns = sum(tensor.numel() for key, tensor in made.tensors.items() if key in trained)
        total = sum(tensor.numel() for tensor in made.tensors.values())
        names = {"copied": report.copied, "new": report.new, "reshaped": report.reshaped, "dropped": report.dropped}
        counts = ", ".join(f"{len(keys)} {what}" for what, keys in names.items())
        Report(json_lines=self.json).done(
            {"input": self.source, "output": self.output, "parameters": total, "trained": learns, **names},
            f"{self.output}  tensors: {counts}; {total:,} parameters, of which {learns:,} learn",
        )
        return 0


@dataclass(frozen=True)
class Merge:
    """Put what training changed into the model it began with."""

    start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")]
    """What `pixdec l2p init` wrote, and training began with."""
    trained: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAINED")]
    """What `pixdec train l2p` left."""
    output: Output
    """The file to write, .safetensors."""
    dtype: Dtype | None = None
    """Precision of the file; without it each tensor keeps its own."""
    json: Json = False

    def run(self) -> int:
        from pixdec.l2p.transfer import merge
        from pixdec.l2p.weight_files import open_weights, save_weights

        _check_target(self.output)
        start, trained = open_weights(self.start), open_weights(self.trained)
        merged = merge(start, trained)
        prepare([Path(self.output)])
        save_weights(merged, self.output, torch_dtype(self.dtype))
        counts = {"tensors": len(merged.tensors), "replaced": len(trained.tensors)}
        Report(json_lines=self.json).done(
            {"input": self.trained, "output": self.output, **counts},
            f"{self.output}  {counts['tensors']} tensors, of which {counts['replaced']} were trained",
        )
        return 0


@dataclass(frozen=True)
class Generate:
    """Generate images from prompts with a pixel model: no latent, no VAE.

    An image that is in the output already is not made again, so a run that was interrupted or had failures goes on when
    it is called again.
    """

    output: Output
    """A folder: it is created. For one --prompt also an image file (.png, .webp, .jpg)."""
    by: Annotated[PixelGenerationSettings, tyro.conf.arg(name="")]
    what: Asked = NOTHING
    json: Json = False

    def run(self) -> int:
        prompts = self.what.given()
        check_device(self.by.device)
        from pixdec.generation.pixel_generation import PixelGeneration

        return make_all(PixelGeneration(prompts, self.output, self.by), json_lines=self.json)


@dataclass(frozen=True)
class Prompts:
    """Write a list of prompts for `pixdec l2p synthesise`: the shipped 1000, or more by a language model.

    With --endpoint a language model invents subjects for every topic, writes the prompts, and judges them. A run that
    ended goes on when it is called again.
    """

    output: Output
    """The list to write, .jsonl."""
    endpoint: str | None = None
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """Its model."""
    count: int = 1000
    """How many prompts the list is to have."""
    language: Literal["en", "zh", "both"] = "both"
    """In which languages."""
    key_env: str = "PIXDEC_JUDGE_KEY"
    """The environment variable that holds the endpoint's key."""
    timeout: float = 120
    """Seconds for an answer."""
    json: Json = False

    def run(self) -> int:
        from pixdec.l2p.prompt_lists import LANGUAGES, Progress, shipped, write_prompts

        if not self.output.endswith(".jsonl"):
            raise ValueError(f"{self.output}: expected the name of a file that ends in .jsonl")
        if self.count < 1:
            raise ValueError(f"count={self.count}: expected at least 1")
        languages = tuple(LANGUAGES) if self.language == "both" else (self.language,)
        if self.endpoint is None:
            found = [each for each in shipped() if each.name.startswith(languages)][: self.count]
            prepare([Path(self.output)])
            write_whole(self.output, "".join(f"{each.line()}\n" for each in found))
            last = Progress(len(found), len(found))
        else:
            from pixdec.evaluate.judge.endpoint import Endpoint

            key, body = os.environ.get(self.key_env, "").strip() or None, {"temperature": 1.0, "max_tokens": 8192}
            writer = Endpoint(self.endpoint, self.model or "", key, body, timeout=self.timeout)
            last = Progress(0, self.count)
            with progress(self.count, "prompt") as bar:
                for last in write_prompts(self.output, self.count, writer, Event().wait, languages):
                    bar.update(last.done - bar.n)
        out = f"; left out: {last.left_out}" if last.left_out else ""
        record = {"output": self.output, "prompts": last.done, "left_out": last.left_out}
        Report(json_lines=self.json).done(record, f"{self.output}  {last.done} prompts{out}")
        return 0


@dataclass(frozen=True)
class Synthesise:
    """Make the images that a pixel model learns from, with a latent generator: prompts x seeds -> shards.

    Each image has its prompt, embedded too, its seed and settings beside it. The same command goes on with a run that
    ended.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """z-image, flux2-klein, qwen-image, or a pipeline of their kind by hub id or folder."""
    output: Output
    """The folder of the shards."""
    by: Annotated[SynthesisSettings, tyro.conf.arg(name="")] = field(default_factory=SynthesisSettings)
    prompts: str | None = None
    """A file of prompts (`pixdec l2p prompts`); without it the shipped 1000."""
    steps: int | None = None
    """Steps of the source; without it its own number."""
    guidance: float | None = None
    """Its guidance_scale; without it its own."""
    height: int = 1024
    """In pixels."""
    width: int = 1024
    """In pixels."""
    device: str | None = None
    """Such as cpu or cuda; without it the fastest there is."""
    ray: str | None = None
    """Address of a Ray cluster that makes the images, one of each GPU's at a time: host:port, ray://host:port, auto for
    the one that this machine is in, or local."""
    json: Json = False

    def run(self) -> int:
        check_device(self.device)
        from pixdec.generation.prompts import Prompt, read_prompts
        from pixdec.io.quiet import quiet
        from pixdec.l2p.images import PipelineImages
        from pixdec.l2p.prompt_lists import shipped
        from pixdec.train.synthesise import synthesise

        if self.prompts is None:
            prompts = [Prompt(each.prompt, each.name) for each in shipped()]
        else:
            prompts = read_prompts(self.prompts)
        call = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        settings = {name: value for name, value in call.items() if value is not None}
        settings |= {"height": self.height, "width": self.width}
        made = partial(PipelineImages.from_pretrained, self.source, self.device, **settings)
        total = len(prompts) * self.by.images_per_prompt
        with progress(total, "image") as bar, quiet("diffusers", "transformers"):
            for there, _ in synthesise(
                prompts, self.output, made, {"name": self.source, **settings}, self.by, self.ray
            ):
                bar.update(there - bar.n)
        Report(json_lines=self.json).done({"output": self.output, "images": total}, f"{self.output}  {total} images")
        return 0


@dataclass(frozen=True)
class Bench:
    """Make the images of a benchmark with a pixel model, laid out as its official scorer expects: DPG-Bench, GenEval.

    What is there already is not made again. The command to score with is printed at the end.
    """

    benchmark: Annotated[Literal["dpg", "geneval"], tyro.conf.Positional]
    """dpg or geneval."""
    prompts: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPTS")]
    """Of DPG-Bench the folder of its .txt files or its .csv, of GenEval its evaluation_metadata.jsonl."""
    output: Output
    """A folder: it is created."""
    model: str = "pixdec-l2p"
    """A pixel model, as for generate."""
    steps: int = 30
    """Euler steps."""
    guidance: float = 2.0
    """As for generate."""
    seed: int = 0
    """Image k of prompt i (from 0) has the seed SEED + 1000 i + k."""
    text_encoder: str | None = None
    """As for generate."""
    device: str | None = None
    """Such as cpu or cuda; without it the fastest there is."""

    def run(self) -> int:
        check_device(self.device)
        from pixdec.evaluate.benchmarks import SCORING, make_images, read_items
        from pixdec.l2p.images import PixelImages
        from pixdec.l2p.pixel_pipeline import PixelPipeline

        items = read_items(self.benchmark, self.prompts)
        pipe = PixelPipeline.from_pretrained(self.model, text_encoder=self.text_encoder, device=self.device)
        call = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        source = PixelImages(pipe, self.model, call)
        with progress(len(items), "prompt") as bar:
            for _ in make_images(self.benchmark, items, source, self.output, self.seed):
                bar.update()
        print(SCORING[self.benchmark].format(folder=self.output, side=pipe.model.settings.side))
        return 0


def _check_target(output: str) -> None:
    if not output.endswith(".safetensors"):
        raise ValueError(f"{output}: expected the name of a file that ends in .safetensors")


@dataclass(frozen=True)
class L2p:
    """Turn a latent generator into one of pixels (L2P). Train between init and merge: `pixdec train l2p`."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[Prompts, tyro.conf.subcommand("prompts", prefix_name=False)]
        | Annotated[Synthesise, tyro.conf.subcommand("synthesise", prefix_name=False)]
        | Annotated[Init, tyro.conf.subcommand("init", prefix_name=False)]
        | Annotated[Merge, tyro.conf.subcommand("merge", prefix_name=False)]
        | Annotated[Generate, tyro.conf.subcommand("generate", prefix_name=False)]
        | Annotated[Bench, tyro.conf.subcommand("bench", prefix_name=False)]
    ]

    def run(self) -> int:
        return self.action.run()
