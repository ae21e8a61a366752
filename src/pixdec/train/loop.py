"""The training loop, as a generator: it yields after every step; the caller logs, saves, evaluates and stops.

Every step's batch and noise follow from (seed, step) alone, so a run that stops at any moment and resumes from its last
checkpoint takes the same trajectory as one that never stopped.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixdec.devices import has_bfloat16_units
from pixdec.files import replacing
from pixdec.train.parallel import Share, average_gradients

# gamma of the power-function average for a relative width of 0.1 (Karras et al. 2024, EDM2, section 3.1).
EMA_GAMMA = 6.94


@dataclass(frozen=True)
class LoopSettings:
    """Optimisation of one run. The rate rises linearly over `warmup` steps, stays, and falls to zero along a half
    cosine over the last `decay` of the steps."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What one step did. `losses` are plain floats, "total" among them."""

    step: int
    losses: Mapping[str, float]
    gradient_norm: float
    seconds: float


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Rate of step `step` (0-based)."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def power_average(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """One update of the power-function average: beta_n = (1 - 1/n)^(gamma+1) (EDM2, eq. 127)."""
    beta = (1 - 1 / (int(count) + 1)) ** (EMA_GAMMA + 1)
    return torch.lerp(new, average, beta)


class Run:
    """All that training changes: the network, its average, the optimizer, the step. Saved and restored as one."""

    def __init__(self, network: nn.Module, settings: LoopSettings):
        self.network = network
        self.average = AveragedModel(network, avg_fn=power_average)
        self.optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.step = 0

    def save(self, path: str | Path) -> None:
        """Writes the state beside `path` and renames it into place."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: str | Path) -> bool:
        """Restores the state if `path` exists; says whether it did."""
        if not Path(path).exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True


def train(run: Run, losses_at: Callable[[int], dict[str, Tensor]], settings: LoopSettings) -> Iterator[Progress]:
    """Runs steps until `settings.steps`; `losses_at(step)` gives named scalar losses, "total" is minimised.

    Raises FloatingPointError on a non-finite loss or gradient, before the weights are touched.
    """
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    while run.step < settings.steps:
        start = time.perf_counter()
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(settings, run.step)
        losses = losses_at(run.step)
        run.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        average_gradients(parameters)
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip))
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {run.step}: gradient norm {norm}; lower the learning rate and resume")
        run.optimizer.step()
        run.average.update_parameters(run.network)
        run.step += 1
        values = {name: float(value.detach()) for name, value in losses.items()}
        yield Progress(run.step, values, norm, time.perf_counter() - start)


def mixed_precision() -> torch.autocast:
    """bfloat16 matrix products and convolutions over float32 weights, where the processor has units for them."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_units())


def generator_at(seed: int, step: int) -> torch.Generator:
    """The noise source of one step. PyTorch's CPU generator reads 32 bits of a seed, so both must fit into them."""
    return torch.Generator().manual_seed((1_000_003 * seed + step) % 2**32)


def train_in(
    folder: Path,
    run: Run,
    losses_at: Callable[[int], dict[str, Tensor]],
    settings: LoopSettings,
    save_every: int,
    share: Share = Share(),  # noqa: B008  it is frozen
) -> None:
    """Trains, or resumes, the run of a folder: `state.pt` every `save_every` steps and at the end, `metrics.jsonl` with
    one line for each step, both written by the first process alone and its losses those of its share."""
    folder.mkdir(parents=True, exist_ok=True)
    run.resume(folder / "state.pt")
    for progress in train(run, losses_at, settings):
        if share.rank > 0:
            continue
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(asdict(progress)) + "\n")
        if progress.step % save_every == 0 or progress.step == settings.steps:
            run.save(folder / "state.pt")


def averaged_weights(path: str | Path) -> dict[str, Tensor]:
    """The averaged network of a saved state, under its own keys: what is evaluated and exported."""
    average = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"}
