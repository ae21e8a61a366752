"""`pixdec generate`: prompts → latents of a diffusers pipeline, stopped early → images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pixdec.cli.making import Maker, MakeSettings, Plan
from pixdec.cli.options import AS_IT_IS, Dtype, Flag, Format, HowToRun, Output, Run
from pixdec.cli.processes import Process
from pixdec.cli.prompts import SEED_LIMIT, Prompt, read_prompts
from pixdec.cli.report import Report
from pixdec.cli.shots import SEEDS_EACH, Shot, Todo, Want, check_earlier, plan_shots, unfinished

if TYPE_CHECKING:
    from pixdec.cli.pipelines import Blueprint
    from pixdec.decoder import PixelDecoder


@dataclass(frozen=True)
class Generate:
    """Generate images from prompts: a diffusers pipeline, stopped early, and a decoder in place of its VAE.

    An image that is in the output already is not made again, so a run that was interrupted or had failures goes on when
    it is called again. torchrun spreads the prompts over several GPUs.
    """

    pipeline: str
    """The generator: a hub id, or a folder that pipe.save_pretrained wrote."""
    output: Output
    """A folder: it is created. For one --prompt also an image file (.png, .webp, .jpg)."""
    prompt: str | None = None
    """What to generate."""
    prompts: str | None = None
    """A file of prompts: one a line, or .jsonl with {"prompt", "name", "seed", "negative", "height", "width"}."""
    stop_after: int | Literal["auto"] = "auto"
    """End the generator after so many of its steps; "auto" picks the step, and runs few-step models to their end."""
    decoder: str = "pixdec-nano"
    """A name that `pixdec models` lists, or a file or folder of weights."""
    lora: str | None = None
    """A LoRA for the decoder: a file of `pixdec train` with --lora.rank."""
    lora_strength: float = 1.0
    """How much of the LoRA is added: 1 as trained, 0 nothing."""
    space: str | None = None
    """The latent space, where the decoder's file or a pipeline without a VAE does not tell."""
    steps: int | None = None
    """Steps of the generator's full schedule; without it the pipeline's own number."""
    decoder_steps: int | None = None
    """Decoding steps; without it as many as the decoder is made for."""
    seed: int = 0
    """Image k of prompt i (from 0) has the seed SEED + 1000 i + k, whatever else is made and by how many processes."""
    images_per_prompt: int = 1
    """The second of a prompt is NAME-2, and so on."""
    height: int | None = None
    """Of the generator's image, in pixels; the decoder's is larger."""
    width: int | None = None
    """Of the generator's image, in pixels."""
    guidance: float | None = None
    """The strength of guidance; without it the pipeline's own."""
    negative: str | None = None
    """The negative prompt, for pipelines that take one."""
    save_latents: Flag = False
    """Keep each latent beside its image as NAME.safetensors; `pixdec decode` makes the same image of it."""
    latents_only: Flag = False
    """Make latents and no images: the decoder is not needed. The same command without this decodes them."""
    offload: Flag = False
    """Never hold generator and decoder in memory together: first all latents are made, into a hidden folder in OUT,
    then the generator is released and they are decoded. On CUDA each part of the generator is on the GPU only while it
    works. It costs the time to move these parts for every image, disk for the latents, and no image is ready before the
    last latent. Without it both stay on the device."""
    again: Flag = False
    """Make images anew that are there with other settings, instead of stopping."""
    trust: Flag = False
    """Accept latents also whose statistics look wrong."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is. Under torchrun each process has its own."""
    dtype: Dtype | None = None
    """Precision of generator and decoder; without it what suits the device."""
    how: Run = AS_IT_IS
    format: Format | None = None
    """Format of the images in an output folder; png without it."""
    json: Flag = False
    """Print one JSON object for each image."""

    def run(self) -> int:
        process = Process.here()
        report = Report(json_lines=self.json)
        try:
            plan = self._plan()
        except (ValueError, OSError):
            if process.local:  # what is wrong here is wrong for all processes; the first of the machine says it
                return 2
            raise
        mine = [shot for shot in plan.shots if process.takes(shot.number)]
        todo = unfinished(mine, plan.want, plan.image_asked, plan.latent_asked)
        _tell_skipped(mine, todo, plan.want, report)
        if todo:
            Maker(plan, process, process.device(self.device), report).make(todo)
        return 2 if process.any_failed(report.exit_code != 0) else 0

    def _plan(self) -> Plan:
        """All that can be settled, and refused, before anything is loaded. Makes the output folder."""
        self._check_numbers()
        prompts = self._prompts()
        from pixdec.cli.pictures import check_run
        from pixdec.cli.plan import prepare
        from pixdec.io.images import WRITABLE

        shots = plan_shots(
            prompts,
            self.output,
            seed=self.seed,
            each=self.images_per_prompt,
            suffix=f".{self.format or 'png'}",
            writable=[".safetensors"] if self.latents_only else WRITABLE,
            single=self.prompt is not None,
        )
        check_run(self.how, self.device)

        from pixdec.cli.pipelines import find_pipeline, quiet_libraries

        decoder = None if self.latents_only else self._hollow_decoder()
        with quiet_libraries(bars=False):
            blueprint = find_pipeline(self.pipeline)
        self._check_pipeline(blueprint, decoder, prompts)
        arguments = {shot: self._arguments(blueprint, shot.prompt) for shot in shots}
        plan = Plan(blueprint, decoder, arguments, self._want(), self._make_settings())
        if not self.again:
            check_earlier(shots, plan.want, plan.image_asked, plan.latent_asked)
        prepare(path for shot in shots for path in plan.want.files(shot))
        return plan

    def _want(self) -> Want:
        return Want(images=not self.latents_only, latents=self.latents_only or self.save_latents)

    def _make_settings(self) -> MakeSettings:
        return MakeSettings(
            stop_after=self.stop_after,
            space=self.space,
            trust=self.trust,
            decoder=self.decoder,
            decoder_steps=self.decoder_steps,
            lora=self.lora,
            lora_strength=self.lora_strength,
            offload=self.offload,
            dtype=self.dtype,
            how=self.how,
        )

    def _prompts(self) -> list[Prompt]:
        if (self.prompt is None) == (self.prompts is None):
            what = "neither is given" if self.prompt is None else "both are given"
            raise ValueError(f"expected --prompt TEXT or --prompts FILE: {what}")
        if self.prompts is not None:
            return read_prompts(self.prompts)
        assert self.prompt is not None
        if not self.prompt.strip():
            raise ValueError("--prompt is empty; say what to generate")
        return [Prompt(self.prompt, "--prompt")]

    def _check_numbers(self) -> None:
        counts = {
            "--steps": self.steps,
            "--stop-after": None if self.stop_after == "auto" else self.stop_after,
            "--decoder-steps": self.decoder_steps,
            "--height": self.height,
            "--width": self.width,
        }
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{option} {value}: expected at least 1")
        if not 1 <= self.images_per_prompt <= SEEDS_EACH:
            raise ValueError(f"--images-per-prompt {self.images_per_prompt}: expected 1 to {SEEDS_EACH}")
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"--seed {self.seed}: expected 0 to {SEED_LIMIT - 1}")

    def _hollow_decoder(self) -> PixelDecoder:
        """What the decoder is, without memory for its weights."""
        from pixdec.cli.pictures import open_decoder

        return open_decoder(
            self.decoder,
            "meta",
            self.dtype,
            self.space,
            caption="",
            steps=self.decoder_steps,
            lora=self.lora,
            lora_strength=self.lora_strength,
            run=HowToRun(tile=self.how.tile),
        )

    def _check_pipeline(self, blueprint: Blueprint, decoder: PixelDecoder | None, prompts: Sequence[Prompt]) -> None:
        """That the pipeline takes these arguments, reaches the stop, and makes what the decoder takes."""
        from pixdec.cli.pipelines import check_call
        from pixdec.integrations.diffusers.calls import shared_space
        from pixdec.integrations.diffusers.noise import check_scheduler
        from pixdec.integrations.diffusers.spaces import check_one_image, space_of

        steps = blueprint.steps(self.steps)
        if self.stop_after != "auto" and steps is not None and self.stop_after > steps:
            whose = "" if self.steps is not None else f", {blueprint.kind.__name__}'s own number"
            raise ValueError(f"--stop-after {self.stop_after}: the run has {steps} steps{whose}; see --steps")
        hollow = blueprint.hollow
        space = space_of(hollow, self.space) if decoder is None else shared_space(hollow, decoder, self.space)
        check_one_image(hollow, {})
        if hasattr(hollow, "scheduler"):
            check_scheduler(hollow.scheduler)
        for prompt in prompts:
            check_call(blueprint, space, self._arguments(blueprint, prompt), prompt.where)

    def _arguments(self, blueprint: Blueprint, prompt: Prompt) -> dict[str, Any]:
        """What the pipeline is called with for a prompt, apart from the generator of its noise."""
        from pixdec.cli.pipelines import call_arguments

        return call_arguments(
            blueprint,
            prompt=prompt.text,
            negative=self.negative if prompt.negative is None else prompt.negative,
            steps=self.steps,
            guidance=self.guidance,
            height=self.height if prompt.height is None else prompt.height,
            width=self.width if prompt.width is None else prompt.width,
        )


def _tell_skipped(shots: Sequence[Shot], todo: Sequence[Todo], want: Want, report: Report) -> None:
    """What an earlier run has made."""
    left = {each.shot for each in todo}
    there = [shot for shot in shots if shot not in left]
    if report.json_lines:
        for shot in there:
            report.done({"input": shot.name, "output": str(want.files(shot)[0]), "skipped": True}, "")
    elif there:
        report.done({}, f"{len(there)} of {len(shots)} are there already")
