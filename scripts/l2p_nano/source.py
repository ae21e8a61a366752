"""The nano source: Z-Image's transformer with 1.6 million parameters, on the bundled autoencoder's latents of drawn
scenes."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.encoder import ImageEncoder
from pixdec.io.files import replacing
from pixdec.io.tensors import to_pil, to_tensor
from pixdec.l2p.sources.z_image import NANO
from pixdec.sampling.flow import interpolate, shifted_times
from pixdec.sampling.samplers import euler
from pixdec.text.words import Words
from pixdec.train.checkpoints import State, checkpoints
from pixdec.train.log import Log
from pixdec.train.loop import LoopSettings, train
from scripts.l2p_nano.scenes import SIDE, WORDS, Scene, drawn_scenes, held_out, render

LATENT = (32, SIDE // 8, SIDE // 8)
SHIFT, LEAST = 2.0, 0.4  # of noise levels; the least by which an error of x0 is divided
BATCH, DROPPED = 16, 0.1  # images of a step; share of them without caption


def new_transformer(seed: int = 0) -> Any:
    """With fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZImageTransformer2DModel(**{**NANO, "in_channels": LATENT[0]})  # pyright: ignore[reportArgumentType]


def estimate(model: Any, x: Tensor, t: Tensor, text: Sequence[Tensor]) -> Tensor:
    """x0 (B,32,h,w). This source says x0 and not the velocity: noise of 128 values a token does not pass through 96
    channels, and what is clean does (Li and He 2025, arXiv 2511.13720). Its time runs from 0, noise, to 1."""
    return torch.stack(model(list(x[:, :, None]), 1 - t, list(text), return_dict=False)[0])[:, :, 0].float()


def pool(folder: Path, count: int) -> tuple[Tensor, list[str]]:
    """Latents (count,32,h,w) of drawn scenes and their captions; encoded once."""
    scenes = list(islice(drawn_scenes(1), count))
    path = folder / "latents.safetensors"
    if not path.exists():
        encoder, found = ImageEncoder.from_pretrained(device="cpu"), list[Tensor]()
        for first in range(0, count, 50):
            images = torch.cat([to_tensor(render(scenes[i], i)) for i in range(first, min(first + 50, count))])
            found.append(encoder.space.unpatchify(encoder.encode(images).tensor).bfloat16())
        with replacing(path) as temporary:
            save_file({"latents": torch.cat(found).contiguous()}, temporary)
    return load_file(path)["latents"], [scene.caption for scene in scenes]


def train_source(folder: Path, steps: int, scenes: int, seed: int = 0) -> None:
    """Trains, or goes on; leaves `folder`/transformer, as diffusers saves it."""
    if (folder / "transformer").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    latents, captions = pool(folder, scenes)
    words, model = Words(WORDS, NANO["cap_feat_dim"]), new_transformer(seed)
    settings = LoopSettings(steps, BATCH, learning_rate=1.5e-3, warmup=100, decay=0.6, weight_decay=0.01)
    state = State({"source": model}, settings)
    if saved := checkpoints(folder):
        state.load(saved[-1])

    def losses_at(step: int, _: int) -> Mapping[str, Tensor]:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(latents), (BATCH,), generator=draw)
        u = (torch.rand(1, generator=draw) + torch.arange(BATCH) / BATCH) % 1
        t = SHIFT * u / (1 + (SHIFT - 1) * u)
        x0, noise = latents[chosen].float(), torch.randn(BATCH, *LATENT, generator=draw)
        dropped = (torch.rand(BATCH, generator=draw) < DROPPED).tolist()
        text = words(["" if gone else captions[i] for i, gone in zip(chosen.tolist(), dropped, strict=True)])
        errors = (estimate(model, interpolate(x0, noise, t), t, text) - x0).square().mean((1, 2, 3))
        flow = (errors / t.clamp_min(LEAST).square()).mean()  # of the velocity
        return {"total": flow}

    with Log(folder, state.step, active=True) as log:
        for progress in train(state, losses_at, settings):
            log.write(progress)
            if progress.step % 100 == 0 or progress.step == steps:
                state.save_step(folder, 2)
            if progress.step % 500 == 0 or progress.step == steps:
                with state.averaged():
                    sheet(NanoSource(model), 6).save(folder / f"sheet-{progress.step:05}.png")
    with state.averaged():
        model.save_pretrained(folder / "transformer")


class NanoSource:
    """An `ImageSource` (`pixdec.l2p.images`)."""

    name = "nano-source"

    def __init__(self, model: Any, steps: int = 16, guidance: float = 3.0):
        self.model, self.steps, self.guidance = model.eval(), steps, guidance
        self.words, self.autoencoder = Words(WORDS, NANO["cap_feat_dim"]), ImageEncoder.from_pretrained(device="cpu")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "NanoSource":
        return cls(ZImageTransformer2DModel.from_pretrained(folder / "transformer"))

    @torch.inference_mode()
    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One for each; the noise of an image follows from its seed alone."""
        self.model.eval()
        x = torch.stack([torch.randn(LATENT, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        both = [*self.words([""] * len(prompts)), *self.words(prompts)]

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            without, given = estimate(self.model, x.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return (x - without - self.guidance * (given - without)) / t[:, None, None, None]

        for step in euler(denoise, x, shifted_times(self.steps, SHIFT)):
            x = step.x0
        self.model.train()
        made = self.autoencoder.decode(self.autoencoder.space.patchify(x))
        return to_pil(made.clamp(-1, 1))

    def embed(self, prompts: Sequence[str]) -> list[Tensor]:
        return self.words(prompts)


def sheet_scenes(count: int) -> list[Scene]:
    """What a sheet shows, row by row."""
    scenes = list(islice(drawn_scenes(7, held=True), count))
    assert all(held_out(scene) for scene in scenes)
    return scenes


def sheet(source: Any, rows: int, columns: int = 8) -> Image.Image:
    """Images of held-out captions, always the same."""
    scenes = sheet_scenes(rows * columns)
    return tiled(source.images([scene.caption for scene in scenes], list(range(len(scenes)))), columns)


def tiled(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Side by side, with two pixels between them."""
    whole = Image.new("RGB", (columns * (SIDE + 2), -(-len(images) // columns) * (SIDE + 2)))
    for i, image in enumerate(images):
        whole.paste(image, (i % columns * (SIDE + 2), i // columns * (SIDE + 2)))
    return whole
