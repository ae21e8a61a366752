"""From the nano source to pixels: its images, a pixel model that learns from them, and what it has learnt.

Everything passes through what users have: `synthesise`, `transplant`, the training loop, `merge`, `PixelPipeline`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixdec.encoder import ImageEncoder
from pixdec.evaluate.sets import frechet, kid
from pixdec.generation.prompts import Prompt
from pixdec.generation.settings import SynthesisSettings
from pixdec.io.files import write_whole
from pixdec.io.tensors import to_tensor
from pixdec.l2p import PixelPipeline, merge, open_weights, save_weights, transplant
from pixdec.l2p.images import ImageSource, PixelImages
from pixdec.text.words import SCHEME
from pixdec.train.build_pixels import build_pixels
from pixdec.train.data.shards import INDEX
from pixdec.train.recipes import PixelRecipe, l2p_nano
from pixdec.train.runs import RunOptions
from pixdec.train.stages.l2p import PixelStage
from pixdec.train.synthesise import synthesise
from scripts.l2p_nano.scenes import SIDE, WORDS, Scene, all_scenes, drawn_scenes, judge, render
from scripts.l2p_nano.source import NanoSource

NARROW, STEPS, GUIDANCE = 4, 16, 3.0
NAME = "pixdec-l2p"
FILE = f"{NAME}.safetensors"


class Drawn:
    """An `ImageSource` that draws the scenes themselves."""

    name = "drawn"

    def __init__(self, like: ImageSource):
        self.embed = like.embed
        self.scenes = {each.caption: each for scenes in all_scenes().values() for each in scenes}

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [render(self.scenes[prompt], seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def pixels_of(pipe: PixelPipeline, shift: float = 3.0) -> ImageSource:
    """With steps and guidance of its source."""
    call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "shift": shift}
    return PixelImages(pipe, NAME, call)


def make_shards(folder: Path, opened: Callable[[], ImageSource], count: int, seed: int) -> None:
    """Images of `count` captions, none held out, two of each."""
    scenes = dict.fromkeys(islice(drawn_scenes(seed), 4 * count))
    prompts = [Prompt(scene.caption, f"scene {i}") for i, scene in enumerate(islice(scenes, count))]
    facts = {"name": folder.name, "steps": STEPS, "guidance": GUIDANCE}
    for _ in synthesise(prompts, folder, opened, facts, SynthesisSettings(seed, batch=32)):
        pass


def make_start(folder: Path) -> Path:
    """What `pixdec l2p init` writes, of the nano source, with a head of a quarter of the width."""
    path = folder / "start.safetensors"
    if not path.exists():
        made, _ = transplant(open_weights(folder / "source" / "transformer"), 16, narrow=NARROW)
        made = replace(made, settings=replace(made.settings, side=SIDE), name=NAME, licence="Apache-2.0")
        save_weights(replace(made, repository=SCHEME + " ".join(WORDS)), path)
    return path


@dataclass(frozen=True)
class Variation:
    """What of the recipe differs: fields of its objective, the images, and whether the head sees the noisy image."""

    changes: Mapping[str, Any]
    shards: str = "shards"
    skip: bool = True


VARIATIONS: Mapping[str, Variation] = {
    "shallow 1": Variation({}),
    "everything": Variation({"shallow": None}),
    "no input skip": Variation({}, skip=False),
    "fresh noise": Variation({"fixed_noise": False}),
    "real images": Variation({}, shards="real"),
    "shift 1": Variation({"shift": 1.0}),
    "shift 5": Variation({"shift": 5.0}),
    "shallow 2": Variation({"shallow": 2}),
}


def recipe_of(variation: Variation, steps: int) -> PixelRecipe:
    """The nano recipe, with the average of the weights, and checkpoints for the curves."""
    made = l2p_nano()
    return replace(
        made,
        loop=replace(made.loop, steps=steps),
        objective=replace(made.objective, average=True, drop_caption=0.05, **variation.changes),
        folder=replace(made.folder, save_every=250, keep=100),
    )


def transfer(folder: Path, name: str, variation: Variation, steps: int, start: Path | None = None) -> PixelPipeline:
    """Trains a variation, or takes what an earlier run left; from `start`, or the transplanted source."""
    run, start = folder / name.replace(" ", "-"), start or make_start(folder)
    if not (run / "trained.safetensors").exists():
        options = RunOptions(start=str(start), device="cpu")
        built = build_pixels(recipe_of(variation, steps), folder / variation.shards / INDEX, run, options)
        assert isinstance(built.stage, PixelStage)
        if not variation.skip:
            blind(built.stage.network)
        head: Any = built.stage.network.local_decoder
        head.to(memory_format=torch.channels_last)  # with the plain attention a third faster, on one core
        with sdpa_kernel(SDPBackend.MATH):
            for _ in built.go():
                pass
    made = merge(open_weights(start), open_weights(run / "trained.safetensors"))
    save_weights(replace(made, name=NAME), run / FILE, torch.bfloat16)
    return opened_pixels(run)


def opened_pixels(run: Path) -> PixelPipeline:
    """What a finished run left, as it was trained."""
    pipe = PixelPipeline.from_pretrained(run / FILE, device="cpu", torch_dtype=torch.float32)
    if run.name.startswith("no-input-skip"):
        blind(pipe.model)
    return pipe


def blind(model: Any) -> None:
    """From now on the head sees nothing but the transformer's tokens."""

    def dark(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.zeros_like(given[0]), *given[1:]

    model.local_decoder.register_forward_pre_hook(dark)


def measure(source: ImageSource, count: int, batch: int = 20) -> dict[str, float]:
    """Of images of held-out captions: the share that has what its caption says, in all and by what is said; Fréchet and
    kernel distance to drawn images of the same captions, on 128 features, the bundled encoder's 32 channels averaged
    over a grid of 2 x 2; the mean difference between two images of a caption."""
    scenes = list(islice(drawn_scenes(11, held=True), count))
    made = list[Image.Image]()
    for first in range(0, count, batch):
        part = scenes[first : first + batch]
        made += source.images([scene.caption for scene in part], list(range(first, first + len(part))))
    verdicts = [judge(scene, image) for scene, image in zip(scenes, made, strict=True)]
    said = dict.fromkeys(key for verdict in verdicts for key in verdict)
    found = {key: float(np.mean([verdict[key] for verdict in verdicts if key in verdict])) for key in said}
    for kind in dict.fromkeys(scene.kind for scene in scenes):
        alike = [verdict["all"] for scene, verdict in zip(scenes, verdicts, strict=True) if scene.kind == kind]
        found[f"all of {kind}"] = float(np.mean(alike))
    real = features([render(scene, 10_000 + i) for i, scene in enumerate(scenes)])
    mine = features(made)
    few = [scene.caption for scene in scenes[:5] for _ in range(4)]
    again = [np.asarray(each, dtype=np.float64) for each in source.images(few, list(range(500, 500 + len(few))))]
    pairs = [(again[4 * i + a], again[4 * i + b]) for i in range(len(few) // 4) for a, b in combinations(range(4), 2)]
    spread = float(np.mean([np.sqrt(np.square(a - b).mean()) for a, b in pairs]))
    return {**found, "frechet": frechet(mine, real), "kid": kid(mine, real), "diversity": spread}


def features(images: Sequence[Image.Image]) -> Any:
    """(N,128)."""
    encoder = ImageEncoder.from_pretrained(device="cpu")
    with torch.inference_mode():
        raw = encoder.space.unpatchify(encoder.encode(torch.cat([to_tensor(image) for image in images])).tensor)
    return torch.nn.functional.adaptive_avg_pool2d(raw, 2).flatten(1).double().numpy()


def picture(source: ImageSource, pixels: ImageSource, path: Path, columns: int = 8, rows: int = 2) -> None:
    """Held-out captions, and under each the source's image beside the pixel model's, twice as large."""
    kinds = ("place", "count", "pair", "letter", "place", "pair", "place", "count")
    coming = {kind: iter(_of_kind(kind)) for kind in kinds}
    scenes = [next(coming[kinds[i % len(kinds)]]) for i in range(columns * rows)]
    prompts, seeds = [scene.caption for scene in scenes], list(range(len(scenes)))
    wide, high = 4 * SIDE + 12, 2 * SIDE + 40
    whole = Image.new("RGB", (columns // 2 * wide, 2 * rows * high), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(11)
    for i, pair in enumerate(zip(source.images(prompts, seeds), pixels.images(prompts, seeds), strict=True)):
        left, top = i % (columns // 2) * wide + 4, i // (columns // 2) * high + 24
        pen.text((left, top - 19), prompts[i], "black", font)
        for k, image in enumerate(pair):
            large = image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
            whole.paste(large, (left + k * (2 * SIDE + 2), top))
    whole.save(path, quality=60, method=6)


def _of_kind(kind: str) -> Iterator[Scene]:
    return (scene for scene in drawn_scenes(21, held=True) if scene.kind == kind)


def record(folder: Path, name: str, source: ImageSource, count: int) -> None:
    """Measures, unless an earlier run did, and adds to RUN/results.json."""
    path = folder / "results.json"
    known: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = measure(source, count)
        write_whole(path, json.dumps(known, indent=1) + "\n")
    print(name, json.dumps(known[name]), flush=True)


def opened_source(folder: Path) -> Callable[[], ImageSource]:
    """The nano source of a run."""
    return partial(NanoSource.from_pretrained, folder / "source")
