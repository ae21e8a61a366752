"""Trains the bundled decoder, resumably, within a time limit.

    python -m scripts.nano.train --data runs/nano/data --out runs/nano/run --stage shape --minutes 60

A step learns x0 at one of the student's four noise levels for each image of a batch. The first level starts from pure
noise; at the others the network sees its own first estimate, noised (self-rollout), or the truth, noised. Stages:

    shape    pixels, their differences and the means of 8 x 8, with some of Real-ESRGAN's images as the truth, which
             it made of what no autoencoder had damaged
    look     hardly anything else as the truth; also ST-LPIPS's later levels on a jittered crop, and an adversary that
             sees the low-resolution image too (and no pages), with its features
    texture  the same, with photographs and pages alone
    blend    an average of the images that the networks of `--between` make, those after `shape` and `look`, beginning
             at the same average of their weights, which draws a stipple

The same command goes on where it stopped; another stage goes on from there.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pixdec.evaluate.metrics.st_lpips import ShiftTolerantVGG
from pixdec.models.nano import Nano, NanoSettings
from pixdec.sampling.flow import STUDENT_TIMES, interpolate, student_times
from pixdec.sampling.samplers import NoiseSource, student
from pixdec.train.data.degrade import blur
from pixdec.train.parallel import MachineSettings, precision
from scripts.nano.critic import Critic
from scripts.nano.crops import Data
from scripts.nano.data import SCALE

MACHINE = MachineSettings(shard=False)


@dataclass(frozen=True)
class Recipe:
    crop: int = 32  # side of the low-resolution crop
    batch: int = 8
    first: int = 2  # images of a batch at the first noise level
    looked_at: int = 4  # images of a batch that ST-LPIPS sees
    rate: float = 3e-4
    critic_rate: float = 5e-4
    warm_up: int = 100
    pixels: float = 0.5
    means: float = 1.0
    edges: float = 0.25
    phases: float = 2.0
    locked: float = 25.0
    perceptual: float = 0.3
    adversary: float = 0.08
    matched: float = 0.5  # features that the critic makes of both (Wang et al. 2018): straighter lines, fewer cells
    levels: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)  # of ST-LPIPS
    teacher: float = 0.0  # share of images whose truth is Real-ESRGAN's
    pages: float = 0.5  # share of pages in the others
    noisy: float = 0.25  # share of low-resolution images with sigma > 0
    most_sigma: float = 0.6
    average: float = 0.998
    look: float = 0.4  # share of what the second network of `blend` makes


# Pixel losses first: perceptual ones and adversaries make dots of edges that the network cannot place yet.
STAGES = {
    "shape": Recipe(first=8, rate=6e-4, pixels=1.0, edges=1.0, perceptual=0.0, adversary=0.0, teacher=0.75, noisy=0.15),
    "look": Recipe(first=6, teacher=0.9),
    "texture": Recipe(),
    "blend": Recipe(first=6, pixels=1.0, edges=1.0, perceptual=0.0, adversary=0.0, teacher=0.75),
}


def noised(low: Tensor, sigmas: list[float], rng: random.Random) -> Tensor:
    """Low-resolution images (B,3,h,w) at their noise levels: (1−σ)·z + σ·ξ, or, as a generator's early estimate is,
    blurred with σ."""
    made = list[Tensor]()
    for image, sigma in zip(low, sigmas, strict=True):
        if sigma and rng.random() < 0.35:
            width = 0.3 + 2.0 * sigma
            image = blur(image[None], torch.tensor([[width, width]]), torch.zeros(1))[0]
        elif sigma:
            image = (1 - sigma) * image + sigma * torch.randn(image.shape)
        made.append(image)
    return torch.stack(made)


def by_phase(images: Tensor) -> Tensor:
    """Images (B,3,H,W) -> (3, 3·16): the mean of the values, and of their steps down and across, at each of the 16
    places of a pixel in the grid of the low-resolution image, over the batch. A photograph's are all alike."""
    down = images.diff(dim=2, append=images[:, :, -1:]).abs()
    across = images.diff(dim=3, append=images[..., -1:]).abs()
    return torch.stack([F.pixel_unshuffle(each, SCALE).mean((0, 2, 3)) for each in (images, down, across)])


def locked(error: Tensor, cells: int = 8) -> Tensor:
    """What an error (B,3,H,W) has in common at each of the 16 places of a pixel in that grid, over windows of `cells`
    squared, less the mean of the 16: (B,48,n,m). Wrong detail averages out, a pattern of the grid does not."""
    by_place = F.pixel_unshuffle(error, SCALE).unflatten(1, (error.shape[1], SCALE**2))
    return F.avg_pool2d((by_place - by_place.mean(2, keepdim=True)).flatten(1, 2), cells, cells // 2)


def jittered(images: list[Tensor], rng: random.Random) -> list[Tensor]:
    """One window of half the side at a place and scale of chance, the same of each (B,3,H,W)."""
    side = images[0].shape[-1]
    wanted = side // 2
    window = wanted if rng.random() < 0.5 else rng.randrange(wanted, round(1.5 * wanted))
    y, x = (rng.randrange(side - window + 1) for _ in range(2))
    cut = [image[:, :, y : y + window, x : x + window] for image in images]
    if window == wanted:
        return cut
    return [F.interpolate(each, (wanted, wanted), mode="bicubic", antialias=True) for each in cut]


class Trainer:
    """`ends`: the weights of the two networks of `blend`."""

    def __init__(
        self,
        recipe: Recipe,
        settings: NanoSettings,
        vgg: Path | None,
        device: str,
        ends: Sequence[dict[str, Tensor]] = (),
    ):
        self.recipe, self.settings, self.device, self.step = recipe, settings, torch.device(device), 0
        torch.manual_seed(0)
        self.network, self.average = Nano(settings).to(device), Nano(settings).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.critic = Critic().to(device)
        self.vgg = ShiftTolerantVGG(vgg).to(device) if recipe.perceptual else None
        self.between = [Nano(settings).to(device).requires_grad_(False) for _ in ends]
        for network, weights in zip(self.between, ends, strict=True):
            network.load_state_dict(weights)
        for module in (self.network, self.average, self.critic, *self.between):
            for parameter in module.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), recipe.rate, betas=(0.9, 0.99))
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), recipe.critic_rate, betas=(0.5, 0.99))
        self.spent = 0.0

    def state(self) -> dict[str, object]:
        parts = ("network", "average", "critic", "optimizer", "critic_optimizer")
        return {
            "step": self.step,
            "spent": self.spent,
            "recipe": asdict(self.recipe),
            "settings": asdict(self.settings),
            **{part: getattr(self, part).state_dict() for part in parts},
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.spent = state["step"], state["spent"]
        for part in ("network", "average", "critic", "optimizer", "critic_optimizer"):
            getattr(self, part).load_state_dict(state[part])

    def begin(self, weights: dict[str, Tensor]) -> None:
        """From weights that are there, with nothing learnt since."""
        for network in (self.network, self.average):
            network.load_state_dict(weights)

    def cast(self) -> AbstractContextManager[Any]:
        return precision(MACHINE, self.device)

    def learn(self, data: Data, rate: float) -> dict[str, float]:
        """One step on a batch; its losses."""
        recipe, rng = self.recipe, random.Random(self.step)
        torch.manual_seed(self.step)
        for optimizer, factor in ((self.optimizer, recipe.rate), (self.critic_optimizer, recipe.critic_rate)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
        drawn = [data.draw(rng, teacher=recipe.teacher, pages=recipe.pages) for _ in range(recipe.batch)]
        truth, low = torch.stack([high for high, _, _ in drawn]), torch.stack([small for _, small, _ in drawn])
        sigmas = [
            rng.uniform(0, recipe.most_sigma) if rng.random() < recipe.noisy else 0.0 for _ in range(recipe.batch)
        ]
        low = noised(low, sigmas, rng).to(self.device)
        truth, sigma = truth.to(self.device), torch.tensor(sigmas, device=self.device)
        late = slice(recipe.first, None)
        # an adversary makes letters of what nobody can read, so it sees no pages
        judged = [i for i in range(recipe.batch) if not drawn[i][2]] or [0]

        # x_t: noise; or what the first step made, noised again (self-rollout); or the truth, noised
        noise = torch.randn_like(truth)
        t, x_t = torch.full((recipe.batch,), STUDENT_TIMES[0], device=self.device), noise
        if recipe.first < recipe.batch:
            with self.cast(), torch.no_grad():
                first = self.network.estimate(noise[late], t[late], self.network.condition(low[late]), sigma[late])
            from_truth = torch.rand(len(first), device=self.device) < 0.25
            start = torch.where(from_truth.view(-1, 1, 1, 1), truth[late], first.clamp(-1, 1))
            t[late] = torch.tensor(rng.choices(STUDENT_TIMES[1:4], (1, 1, 2), k=len(first)), device=self.device)
            x_t = torch.cat((noise[: recipe.first], interpolate(start, torch.randn_like(start), t[late])))

        condition = self.network.condition(low)
        if self.between:  # in one step, which is what they have learnt
            first_t = torch.full_like(t, STUDENT_TIMES[0])
            with self.cast(), torch.no_grad():
                shape, look = (each.estimate(noise, first_t, condition, sigma) for each in self.between)
            truth = shape.lerp(look, recipe.look)
        with self.cast():
            x0 = self.network.estimate(x_t, t, condition, sigma)
        pixels = (x0 - truth).abs().mean()
        means = (F.avg_pool2d(x0, 8) - F.avg_pool2d(truth, 8)).abs().mean()
        down, across = ((x0.diff(dim=axis) - truth.diff(dim=axis)).abs().mean() for axis in (2, 3))
        edges = down + across
        loss = recipe.pixels * pixels + recipe.means * means + recipe.edges * edges
        phases = (by_phase(x0) - by_phase(truth)).abs().mean()
        stipple = locked(x0 - truth).square().mean()
        loss = loss + recipe.phases * phases + recipe.locked * stipple
        losses = {"pixels": pixels, "means": means, "edges": edges, "phases": phases, "locked": stipple}
        if self.vgg is not None:
            seen = rng.sample(range(recipe.batch), recipe.looked_at)
            with self.cast():
                near, real = jittered([x0[seen], truth[seen]], rng)
                losses["perceptual"] = self.vgg.distance(near, real, recipe.levels).mean()
            loss = loss + recipe.perceptual * losses["perceptual"]
        on_real = list[Tensor]()
        if recipe.adversary:
            with self.cast():
                *on_real, real = self.critic.with_features(truth[judged], low[judged])
                self.critic.requires_grad_(False)
                grain, body, made = self.critic.with_features(x0[judged], low[judged])
            loss = loss - recipe.adversary * (grain.mean() + body.mean())
            wanted = [each.detach() for each in real]
            apart = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(made, wanted, strict=True)]
            losses["matched"] = torch.stack(apart).mean()
            loss = loss + recipe.matched * losses["matched"]
            self.critic.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite")
        self.optimizer.step()
        if recipe.adversary:
            with self.cast():
                on_made = self.critic(x0[judged].detach(), low[judged])
            parts = [F.relu(1 - logits).mean() for logits in on_real] + [
                F.relu(1 + logits).mean() for logits in on_made
            ]
            critic = torch.stack(parts).sum()
            self.critic_optimizer.zero_grad(set_to_none=True)
            critic.backward()
            self.critic_optimizer.step()
            losses |= {"critic": critic, "real": on_real[1].mean(), "made": on_made[1].mean()}
        share = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - share)
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}


@torch.inference_mode()
def decode(network: Nano, low: Tensor, steps: int) -> list[Tensor]:
    """Every step's x0 (B,3,4h,4w) of clean low-resolution images (B,3,h,w)."""
    condition, sigma = network.condition(low), torch.zeros(len(low), device=low.device)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        with precision(MACHINE, low.device):
            return network.velocity(x_t, t, None, condition, sigma)

    noise = NoiseSource(range(len(low)), low.device, steps)
    shape = (len(low), 3, SCALE * low.shape[2], SCALE * low.shape[3])
    return [step.x0 for step in student(velocity, noise, shape, student_times(STUDENT_TIMES, steps))]


def sheet(
    network: Nano, pairs: list[tuple[Tensor, Tensor]], vgg: ShiftTolerantVGG | None
) -> tuple[Image.Image, dict[str, float]]:
    """Rows of crops: Lanczos, one step, four steps, the truth, twice enlarged; and figures on the whole images."""
    rows, scores = list[Tensor](), dict[str, float]()
    for low, high in pairs:
        steps = decode(network, low, 4)
        for name, image in (("1", steps[0]), ("4", steps[3])):
            figures = {f"psnr{name}": -10 * math.log10(float((image - high).square().mean()) / 4)}
            if vgg is not None:
                with torch.inference_mode():
                    figures[f"st{name}"] = float(vgg.distance(image, high))
            scores |= {key: scores.get(key, 0.0) + value / len(pairs) for key, value in figures.items()}
        plain = F.interpolate(low, scale_factor=4, mode="bicubic").clamp(-1, 1)
        y, x = (max(0, side // 2 - 112) for side in high.shape[2:])
        rows.append(torch.cat([each[:, :, y : y + 224, x : x + 224] for each in (plain, steps[0], steps[3], high)], 3))
    big = F.interpolate(torch.cat(rows, 2), scale_factor=2, mode="nearest")[0]
    return Image.fromarray(((big.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()), scores


def _weights(path: Path) -> dict[str, Tensor]:
    """Of a network: a state's average, or a file of weights."""
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {name: value.float() for name, value in load_file(path).items()}


def _batch(recipe: Recipe, images: int) -> Recipe:
    """The recipe with another number of images in a step."""
    return replace(
        recipe,
        batch=images,
        first=recipe.first * images // recipe.batch,
        looked_at=recipe.looked_at * images // recipe.batch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, help="folder of `scripts.nano.data` files to look at")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--stage", choices=STAGES, default="look")
    parser.add_argument("--batch", type=int, help="images of a step, where the machine takes more than 8")
    parser.add_argument("--start", type=Path, help="weights, or a state, to begin from, where --out holds no state")
    parser.add_argument("--between", type=Path, nargs=2, help="weights, or states, for stage `blend`")
    parser.add_argument("--save", type=int, default=250, help="steps between saves")
    parser.add_argument(
        "--vgg", type=Path, help="ST-LPIPS's VGG weights, if neither DATA has them nor the package is there"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if (given.stage == "blend") != (given.between is not None):
        parser.error("--between goes with --stage blend")
    recipe = STAGES[given.stage] if given.batch is None else _batch(STAGES[given.stage], given.batch)
    given.out.mkdir(parents=True, exist_ok=True)
    vgg = given.vgg or next(given.data.glob("st-lpips.pth"), None)
    ends = [_weights(path) for path in given.between or ()]
    trainer = Trainer(recipe, NanoSettings(), vgg, given.device, ends)
    latest = given.out / "state.pt"
    if latest.exists():
        trainer.load(torch.load(latest, map_location=given.device, weights_only=True))
    elif given.start is not None:
        trainer.begin(_weights(given.start))
    elif ends:
        trainer.begin({name: torch.lerp(ends[0][name], ends[1][name], recipe.look) for name in ends[0]})
    data = Data(given.data, recipe.crop)
    pairs = list[tuple[Tensor, Tensor]]()
    for path in sorted(given.held_out.glob("*.safetensors"))[:6] if given.held_out else ():
        each = load_file(path)
        low, high = (image.permute(2, 0, 1)[None].float() / 127.5 - 1 for image in (each["low"][1], each["high"]))
        pairs.append((low.to(given.device), high.to(given.device)))
    begun, before, sums, count = time.monotonic(), trainer.spent, dict[str, float](), 0
    log = (given.out / "log.jsonl").open("a")
    limit, first = given.minutes * 60, trainer.step
    while time.monotonic() - begun < limit:
        left = 1 - (time.monotonic() - begun) / limit
        rate = min(1.0, (trainer.step - first + 1) / recipe.warm_up) * min(
            1.0, 4 * left + 0.05
        )  # falls in the last quarter
        losses = trainer.learn(data, rate)
        trainer.spent = before + time.monotonic() - begun
        sums, count = {name: sums.get(name, 0.0) + value for name, value in losses.items()}, count + 1
        if trainer.step % 50 == 0:
            line = {
                "step": trainer.step,
                "seconds": round(trainer.spent),
                **{k: round(v / count, 6) for k, v in sums.items()},
            }
            print(json.dumps(line), file=log, flush=True)
            sums, count = {}, 0
        if trainer.step % given.save == 0 or time.monotonic() - begun >= limit:
            torch.save(trainer.state(), latest.with_suffix(".part"))
            latest.with_suffix(".part").rename(latest)
            if pairs:
                image, scores = sheet(trainer.average, pairs, trainer.vgg)
                image.save(given.out / f"sheet-{trainer.step:06}.png")
                print(
                    json.dumps({"step": trainer.step, **{k: round(v, 3) for k, v in scores.items()}}),
                    file=log,
                    flush=True,
                )


if __name__ == "__main__":
    main()
