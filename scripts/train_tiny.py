"""Trains the tiny autoencoder of the FLUX.2 latent space, with TAEF2 as teacher.

    python -m scripts.train_tiny --photos FOLDER --teacher FOLDER --folder RUN
    python -m scripts.train_tiny --photos FOLDER --teacher FOLDER --folder OTHER --from-run RUN

The first finds the teacher's latent space; the second, from the first's average, lets go of it a little for the sake of
the round trip.

Three losses: the decoder gives back the image from our latents, and from the teacher's (`error`); our latents approach
the teacher's (mean squared error). The teacher is shown a share of each batch, and is half of the cost of a step that
shows it half.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.taef2 import TAEF2, load_taef2
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.train.checkpoints import State, checkpoints
from pixdec.train.log import Log
from pixdec.train.loop import LoopSettings, train
from pixdec.train.parallel import MachineSettings, precision
from pixdec.weights.load import load_autoencoder, save_autoencoder
from scripts.photos import CropSettings, Photos, ahead

M = TypeVar("M", bound=nn.Module)

NAME = "autoencoder.safetensors"
MACHINE, CPU = MachineSettings(precision="bfloat16", shard=False), torch.device("cpu")


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Everything that decides the result, but the photographs themselves. `match` is the weight on matching the
    teacher's latents, `taught` the share of a batch that it is shown."""

    network: TinyVAESettings = field(default_factory=TinyVAESettings)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=11000, batch=8, learning_rate=2e-3, warmup=100, decay=1.0)
    )
    crops: CropSettings = field(default_factory=lambda: CropSettings(size=96, zoom=7.0, unscaled=0.35, synthetic=0.1))
    match: float = 3.0
    taught: float = 0.5


def tuning() -> AutoencoderRecipe:
    """The second run: smaller, busier images, a tenth of the weight on matching the teacher, and half as much seen of
    it."""
    recipe = AutoencoderRecipe(match=0.3, taught=0.25)
    loop = replace(recipe.loop, learning_rate=1e-3, warmup=300, seed=2)
    return replace(recipe, loop=loop, crops=replace(recipe.crops, zoom=8.0, unscaled=0.25))


def error(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean over the batch of log(MSE), which is what PSNR averages, of the images and with a quarter of the weight of
    their means over 8 x 8 pixels, where the eye sees a drift of colour. A floor keeps flat crops from weighing without
    bound.

    Both (B,3,H,W) in [-1,1]; the MSE is taken in float32.
    """
    squared = (decoded.float() - images).square().mean((1, 2, 3))
    coarse = F.avg_pool2d(decoded.float() - images, 8).square().mean((1, 2, 3))
    return ((squared + 4e-4).log() + 0.25 * (coarse + 1e-4).log()).mean()


def losses(network: TinyVAE, teacher: TAEF2, images: Tensor, match: float, share: float) -> dict[str, Tensor]:
    """Losses on images (B,3,H,W) in [-1,1], of which the teacher is shown `share`, the first ones."""
    n = max(1, round(share * len(images)))
    with torch.no_grad():
        taught = teacher.encode(images[:n])  # (n,32,H/8,W/8)
    latent = network.encoder(images)
    from_teacher = error(network.decoder(taught), images[:n])
    from_ours = error(network.decoder(latent[n:]), images[n:])
    matching = F.mse_loss(latent[:n].float(), taught.float())
    return {
        "total": 0.5 * ((1 - share) * from_ours + share * from_teacher) + match * matching,
        "ours": from_ours,
        "teacher": from_teacher,
        "match": matching,
    }


def main(
    photos: Path,
    teacher: Path,
    folder: Path,
    from_run: Path | None = None,
    recipe: AutoencoderRecipe | None = None,
    save_every: int = 200,
) -> None:
    """Trains, or resumes, the run in `folder`; ends with the averaged weights in `autoencoder.safetensors` there. With
    `from_run`, the folder of another run, it begins with that run's weights, and `tuning` is its recipe."""
    recipe = recipe or (AutoencoderRecipe() if from_run is None else tuning())
    torch.manual_seed(recipe.loop.seed)
    network = TinyVAE(recipe.network)
    if from_run is not None:
        network.load_state_dict(load_autoencoder(from_run / NAME).state_dict())
    network = _channels_last(network)
    source, taef2 = Photos(photos, recipe.crops.size), _channels_last(load_taef2(teacher))
    state = State({"autoencoder": network}, recipe.loop)
    folder.mkdir(parents=True, exist_ok=True)
    if saved := checkpoints(folder):
        state.load(saved[-1])
    batch = ahead(lambda step: source.batch(recipe.crops, recipe.loop.seed, step, recipe.loop.batch))

    def losses_at(step: int, part: int) -> dict[str, Tensor]:
        images = batch(step).contiguous(memory_format=torch.channels_last)
        with precision(MACHINE, CPU):
            return losses(network, taef2, images, recipe.match, recipe.taught)

    with Log(folder, state.step) as log:
        for progress in train(state, losses_at, recipe.loop):
            log.write(progress)
            if progress.step % save_every == 0 or progress.step == recipe.loop.steps:
                state.save_step(folder, keep=1)
    with state.averaged():
        save_autoencoder(network, folder / NAME, name="pixdec-tiny", licence="Apache-2.0")


def _channels_last(network: M) -> M:
    return cast(Any, network).to(memory_format=torch.channels_last)  # which PyTorch's stub of `to` leaves out


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
