"""What the processes of test_sharing.py do: `python sharers.py FOLDER`, started twice as torchrun would. Each decodes
the same images, alone and shared, and leaves what came out in FOLDER/RANK.pt."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed

sys.path.insert(0, str(Path(__file__).parents[1]))
from battery import randomised
from pixdec.inference.sharing import context_of, meet, share_images
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.places import Context
from pixdec.models.tiny_vae import TinyVAESettings
from pixdec.sampling.samplers import NoiseSource, student
from pixdec.sampling.tiling import Tiling, tiled_velocity

BACKBONE = PixDiTSettings(
    hidden=24, heads=2, depth=3, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)
V1 = AdapterSettings(8, latent_factor=4, width=8, blocks=1)
V1_5 = AdapterSettings(8, latent_factor=4, width=8, blocks=1, padding="replicate", gate="token", pixel_head=True)
WIDTHS, DEPTHS = (8, 8, 16), (0, 1, 1)
NANO = PiDSettings(
    PixDiTSettings(
        patch=8, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=24, pixel_heads=2, pixel_depth=1,
        text_width=None, in_channels=6, rope_stride=1.0, pixel_positions="patch", window=4,
    ),
    AdapterSettings(128, latent_factor=16, width=8, blocks=1, unpack=2, gate="token", pixel_head=True),
    prediction="residual",
    base=TinyVAESettings(encoder_widths=WIDTHS, decoder_widths=WIDTHS, encoder_depths=DEPTHS, decoder_depths=DEPTHS),
)  # fmt: skip
KINDS = {"v1": PiDSettings(BACKBONE, V1), "v1.5": PiDSettings(BACKBONE, V1_5), "nano": NANO}
TIMES = (0.999, 0.634, 0.0)
CHUNK = 3  # patches; bands have other numbers of them

Velocity = Callable[[Tensor, Tensor], Tensor]


def new_network(kind: str) -> PiD:
    torch.manual_seed(0)
    network = PiD(KINDS[kind]).initialise().eval()
    randomised(network)
    return network


def case(kind: str, rows: int, columns: int) -> tuple[PiD, Tensor, Tensor | None, Tensor]:
    """A network, latents of two images of so many latent cells, captions, and noise levels of the latents."""
    network, generator = new_network(kind), torch.Generator().manual_seed(3)
    latent = torch.randn(2, network.adapter.settings.latent_channels, rows, columns, generator=generator)
    text = None if kind == "nano" else torch.randn(2, 6, 12, generator=generator)
    return network, latent, text, torch.tensor([0.0, 0.3])


def decoded(velocity: Velocity, height: int, width: int) -> Tensor:
    """The image (2,3,H,W) of two steps, noise drawn by this process from seeds."""
    steps = list(student(velocity, NoiseSource([5, 6], torch.device("cpu")), (2, 3, height, width), TIMES))
    return steps[-1].x0


def whole(kind: str, rows: int, context: Context | None, dtype: torch.dtype = torch.float32) -> dict:
    """The image of a latent of rows x 2 cells, and how many of its tokens this process saw."""
    network, latent, text, sigma = case(kind, rows, 2)
    network.to(dtype)
    condition, seen = network.condition(latent, tokens=False), []
    handle = network.backbone.patch_blocks[1].image.mlp.register_forward_hook(
        lambda _, given, output: seen.append(given[0].shape[1])
    )

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        with share_images(network, context):
            return network.velocity(x_t, t, text, condition, sigma, CHUNK)

    image = decoded(velocity, 16 * rows, 32)
    handle.remove()
    return {"image": image, "tokens": seen, "after": network.backbone.context is None}


def tiled(kind: str, context: Context | None) -> dict:
    """The image of 3 x 2 tiles, 6, or of 3 x 1 of them, 3, that this process computed some of."""
    found: dict = {}
    for columns in (2, 1):
        network, latent, text, sigma = case(kind, 3 if kind == "nano" else 12, columns * (1 if kind == "nano" else 4))
        condition, computed = network.condition(latent, tokens=False), []
        height, width = (192, 64 * columns)
        tiling = Tiling(height, width, side=96, overlap=32, patch=network.settings.backbone.patch)

        def velocity(x_t, t, network=network, text=text, sigma=sigma, condition=condition, tiling=tiling, to=computed):
            def at(tile, cropped):
                to.append(tuple(tile.shape))
                return network.velocity(tile, t, text, cropped, sigma, CHUNK)

            return tiled_velocity(at, x_t, condition, tiling, context)

        found[columns] = {"image": decoded(velocity, height, width), "calls": len(computed), "tiles": len(list(tiling))}
    return found


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


@torch.inference_mode()
def main(folder: Path) -> None:
    torch.set_num_threads(1)
    mesh = meet(torch.device("cpu"), 2)
    context = context_of(mesh.get_group("context"))
    found: dict = {"rank": context.rank, "count": context.count}
    for name, shared in (("alone", None), ("shared", context)):
        found[name] = {kind: whole(kind, 5, shared) for kind in ("v1", "v1.5")}
        found[name]["bfloat16"] = whole("v1.5", 4, shared, torch.bfloat16)
        found[name]["tiles"] = {kind: tiled(kind, shared) for kind in ("nano", "v1")}
    found["refused"] = {
        "rows": refusal(partial(whole, "v1", 1, context)),
        "windows": refusal(partial(whole, "nano", 2, context)),
        "teams": refusal(partial(meet, torch.device("cpu"), 3)),
        "device": refusal(partial(meet, torch.device("mps"))),
    }
    if distributed.get_rank() == 1:  # and this one goes on without the other
        found["after"] = whole("v1", 5, None)
    torch.save(found, folder / f"{context.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
