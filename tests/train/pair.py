"""What the processes of test_parallel.py do: `python pair.py PART FOLDER`, started once, or twice as torchrun would.

Each part trains small decoders by the real loop and leaves what came out in FOLDER/PART.pt.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from battery import randomised
from pixdec import devices
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.train import parallel
from pixdec.train.checkpoints import State
from pixdec.train.data.degrade import DegradeSettings
from pixdec.train.draws import Draws, LevelSettings
from pixdec.train.loop import LoopSettings, Progress, train
from pixdec.train.parallel import MachineSettings, World, join, precision, prepare, whole_tensor
from pixdec.train.stages.decoder import DecoderSettings, DecoderStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings, Examples
from pixdec.train.stages.student import StudentSettings, StudentStage

BATCH = 4
TEXT = PiDSettings(
    PixDiTSettings(
        hidden=24, heads=2, depth=3, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
    ),
    AdapterSettings(
        8, latent_factor=4, width=8, blocks=1, padding="replicate", gate="token", pixel_head=True, aux_rgb=True
    ),
)
EXACT = MachineSettings(precision="float32", recompute=False)
# name -> (kind of network, height, passes of a step, machine)
VARIANTS: Mapping[str, tuple[str, int, int, MachineSettings]] = {
    "sharded": ("text", 48, 1, EXACT),
    "accumulated": ("text", 48, 2, MachineSettings(precision="float32")),
    "whole": ("text", 48, 2, MachineSettings(precision="float32", shard=False)),
    "context": ("text", 48, 1, MachineSettings(precision="float32", shard=False, recompute=False, context=2)),
    "everything": ("text", 64, 2, MachineSettings(precision="float32", compile=True, context=2)),
    "student": ("student", 48, 2, MachineSettings(precision="float32")),
}


HEIGHTS = {(kind, height) for kind, height, _, _ in VARIANTS.values()}


def new_network(kind: str, seed: int = 0) -> PiD:
    torch.manual_seed(seed)
    network = PiD(TEXT).initialize(seed)
    randomised(network)
    with torch.no_grad():
        for gate in (*network.gates, network.pixel_gate):
            gate.log_alpha.add_(0.1234)  # not a number that bfloat16 has
    return network


def embed(captions) -> Tensor:
    return torch.stack([torch.randn(6, 12, generator=torch.Generator().manual_seed(len(each))) for each in captions])


def encode(images: Tensor, channels: int, factor: int) -> Tensor:
    return F.avg_pool2d(images, factor).repeat(1, channels // 3 + 1, 1, 1)[:, :channels]


def new_stage(kind: str, machine: MachineSettings, world: World) -> DecoderStage | StudentStage:
    network = new_network(kind, seed=world.share.rank + world.context.rank)  # all are to begin as the first does
    sizes = network.adapter.settings
    conditions = ConditionSettings(DegradeSettings(scale=4), clean=0.3, drop_caption=0.3)
    conditioner = Conditioner(
        conditions,
        [lambda images: encode(images, sizes.latent_channels, sizes.latent_factor)],
        embed,
    )
    if kind == "student":
        settings = StudentSettings(
            LevelSettings(least=0.1, most=0.9), conditions, ratio=2, gan_warmup=0, r1=1.0, block=1, pixel=0.1
        )
        teacher = new_network(kind)
        stage = StudentStage(network, teacher, settings, conditioner, (0.999, 0.5, 0.0))
        prepare(stage.networks, [teacher], machine, world)
    else:
        stage = DecoderStage(network, DecoderSettings(conditions=conditions), conditioner)
        prepare(stage.networks, [], machine, world)
    return stage


class Training:
    """A stage, its state and its examples, on one of any number of processes."""

    def __init__(self, kind: str, height: int, machine: MachineSettings, world: World, settings: LoopSettings):
        self.stage = new_stage(kind, machine, world)
        self.kind, self.machine, self.world, self.settings = kind, machine, world, settings
        self.height, self.width = height, 32
        self.state = State(self.stage.networks, settings)
        self.early = False  # whether gradients were exchanged before a step's last pass

    def losses_at(self, step: int, part: int) -> dict[str, Tensor]:
        places = self.world.share.places(BATCH, part, self.settings.parts)
        if part > 0:
            parameters = self.stage.network.parameters()
            self.early = self.early or any(isinstance(p.grad, DTensor) for p in parameters)
        images = torch.stack([picture(step, place, self.height, self.width) for place in places])
        examples = Examples(images, [f"caption {'x' * place}" for place in places])
        with precision(self.machine, self.world.device):
            losses = self.stage.losses(step, examples, Draws(0, step, places, BATCH))
            if self.kind == "text":  # the head that is called past the network
                low = self.stage.network.adapter.low_resolution(encode(images, 8, 16))
                losses["total"] = losses["total"] + 0.1 * low.square().mean()
        return losses

    def steps(self) -> Iterator[Progress]:
        yield from train(self.state, self.losses_at, self.settings, self.stage.turn)


def picture(step: int, place: int, height: int, width: int) -> Tensor:
    coarse = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(100 * step + place))
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].tanh()


def mean_loss(progress: Progress) -> float:
    loss = torch.tensor(progress.losses["total"], dtype=torch.float64)
    if distributed.is_initialized():
        distributed.all_reduce(loss)
        loss /= distributed.get_world_size()
    return float(loss)


def first_steps(kind: str, height: int, parts: int, machine: MachineSettings) -> dict:
    """Losses and gradients of one step (a student's: of a step of the critic and one of its own), and the number of
    values that this process keeps of the weights."""
    steps = 2 if kind == "student" else 1
    settings = LoopSettings(steps, BATCH, parts, clip=1e9, learning_rate=1e-4)
    training = Training(kind, height, machine, join("cpu", machine.context), settings)
    losses = [mean_loss(progress) for progress in training.steps()]
    named = [(f"{part}.{n}", p) for part, each in training.stage.networks.items() for n, p in each.named_parameters()]
    gradients = {name: whole_tensor(p.grad).clone() for name, p in named if p.grad is not None}
    kept = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for _, p in named)
    return {"losses": losses, "gradients": gradients, "kept": kept, "early": training.early}


LONG = LoopSettings(steps=6, batch=BATCH, learning_rate=1e-3, warmup=2)
LONG_MACHINE = MachineSettings(precision="float32")


def trajectory(folder: Path, resume: str | None, stop: int, save: str | None) -> dict:
    """Losses of the steps from a checkpoint, or from the beginning, to `stop`; weights and average there."""
    training = Training("text", 48, LONG_MACHINE, join("cpu"), LONG)
    if resume:
        training.state.load(folder / resume)
    losses = []
    for progress in training.steps():
        losses.append(mean_loss(progress))
        if progress.step == stop:
            break
    if save:
        training.state.save(folder / save)
    return {"losses": losses, **end(training.state)}


def end(state: State) -> dict:
    weights = {name: whole_tensor(value).clone() for name, value in state.first.state_dict().items()}
    return {"weights": weights, "average": state.full_average()}


def given() -> tuple[Tensor, ...]:
    """x_t, t, text, latent and sigma for the network that reads text."""
    images = torch.stack([picture(0, place, 48, 32) for place in range(2)])
    t, sigma = torch.tensor([0.33333, 0.77777]), torch.tensor([0.11111, 0.55555])
    return images, t, embed(["a", "bc"]), encode(images, 8, 16), sigma


def low_precision(network: PiD) -> dict:
    """What a network in bfloat16 makes, and the types of its gradients."""
    velocity = network(*given())
    velocity.square().mean().backward()
    types = {name: str(p.grad.dtype) for name, p in network.named_parameters() if p.grad is not None}
    return {"velocity": velocity.detach(), "types": types}


def in_bfloat16(world: World) -> dict:
    devices.has_bfloat16_units = lambda: True  # emulated where the processor has none
    network, machine = new_network("text"), MachineSettings(recompute=False)
    prepare({"decoder": network}, [], machine, world)
    with precision(machine, world.device):
        return low_precision(network)


def averaged_and_back(world: World) -> dict:
    """What a sharded network makes with its averaged weights, by condition and velocity apart, and what a plain one
    does with the same weights."""
    training = Training("text", 48, LONG_MACHINE, world, LONG)
    steps, state, network = training.steps(), training.state, training.stage.network
    next(steps), next(steps)
    before = {name: whole_tensor(value).clone() for name, value in network.state_dict().items()}
    average, (x_t, t, text, latent, sigma) = state.full_average(), given()
    shown = None
    with torch.no_grad():
        try:
            with state.averaged():
                shown = network.velocity(x_t, t, text, network.condition(latent), sigma)
                raise KeyError
        except KeyError:
            pass
        own = network(x_t, t, text, latent, sigma)
        back = all(torch.equal(whole_tensor(value), before[name]) for name, value in network.state_dict().items())
    next(steps)  # and training goes on
    if not average:
        return {}
    plain = type(network)(network.settings)  # of the class that it had before it was sharded
    assert type(plain) is PiD
    plain.load_state_dict(average)
    with torch.no_grad():
        return {"shown": shown, "expected": plain(x_t, t, text, latent, sigma), "own": own, "back": back}


def looked_into(machine: MachineSettings) -> list[Tensor]:
    """Twice the tokens of a frozen network's inner block, and the gradient of a loss on them alone."""
    network, world = new_network("text").requires_grad_(False), join("cpu", machine.context)
    prepare({}, [network], machine, world)
    assert not machine.shard or isinstance(next(network.parameters()), DTensor) == (world.mesh is not None)
    x_t, *others = given()
    for _ in range(2):
        at, seen = x_t.clone().requires_grad_(), []

        def look(_, inputs, output, seen=seen):
            seen.append(inputs[3].whole(output[0], 1))

        handle = network.backbone.patch_blocks[1].register_forward_hook(look)
        network(at, *others)
        handle.remove()
        (gradient,) = torch.autograd.grad(seen[0].square().mean(), at)
    if world.mesh is not None:  # each process has its part of the gradient, times their number
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return [seen[0].detach(), gradient]


def called_apart(world: World) -> dict[str, Tensor]:
    """Gradients through a condition and a velocity that are called apart, to the weights and to x_t."""
    network, (x_t, t, text, latent, sigma) = new_network("text"), given()
    prepare({"decoder": network}, [], EXACT, world)
    x_t.requires_grad_()
    network.velocity(x_t, t, text, network.condition(latent), sigma).square().mean().backward()
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None and p.ndim > 0}
    return {name: whole_tensor(gradient) for name, gradient in {**named, "x_t": x_t.grad}.items()}


def pair(folder: Path) -> dict:
    parallel.BACKEND, parallel.MANY = "aot_eager", 1  # small teachers are sharded too
    found: dict = {name: first_steps(*variant) for name, variant in VARIANTS.items()}
    found["trajectory"] = trajectory(folder, None, 2, "two")
    found["bfloat16"] = in_bfloat16(join("cpu"))
    found["averaged"] = averaged_and_back(join("cpu"))
    found["apart"] = called_apart(join("cpu"))
    found["looked into"] = [looked_into(machine) for machine in (EXACT, VARIANTS["context"][3])]
    return found


def one(folder: Path) -> dict:
    found: dict = {kind: first_steps(*kind, 1, EXACT) for kind in HEIGHTS}
    found["trajectory"] = trajectory(folder, None, 6, None)
    found["resumed"] = trajectory(folder, "two", 4, "one")
    found["bfloat16"] = low_precision(new_network("text").to(torch.bfloat16))
    found["apart"] = called_apart(join("cpu"))
    found["looked into"] = looked_into(EXACT)
    return found


def back(folder: Path) -> dict:
    return {"resumed": trajectory(folder, "one", 6, None)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts: Mapping[str, Callable[[Path], dict]] = {"pair": pair, "one": one, "back": back}
    result = parts[sys.argv[1]](Path(sys.argv[2]))
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save(result, Path(sys.argv[2]) / f"{sys.argv[1]}.pt")
