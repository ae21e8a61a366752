"""All that training changes, and its checkpoints: saved whole or not at all, read back by any number of processes.

A checkpoint is a folder that PyTorch's distributed checkpointing writes: every process its own part. A run with another
number of processes reads the parts it needs. Tensors in it are named

    networks.NETWORK.PARAMETER   optimizers.NETWORK.PARAMETER.MOMENT   average.PARAMETER   step   averaged
"""

import pickle
import shutil
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.serialization import _get_layout  # pyright: ignore[reportPrivateUsage]

from pixdec.io.files import first_line_of
from pixdec.train.loop import LoopSettings
from pixdec.train.parallel import reshard, together, whole_tensor

# gamma of the power-function average for a relative width of 0.1 (Karras et al. 2024, EDM2, section 3.1).
EMA_GAMMA = 6.94


class PowerAverage:
    """The power-function average of a network's weights: beta_n = (1 − 1/n)^(gamma+1) (EDM2, eq. 127). Weights that do
    not learn are not averaged; sharded ones are, shard by shard."""

    def __init__(self, network: nn.Module, *, active: bool = True):
        self.count = 0
        learning = ((name, p) for name, p in network.named_parameters() if p.requires_grad and active)
        self.weights = {name: p.detach().clone() for name, p in learning}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the present weights."""
        self.count += 1
        beta = (1 - 1 / (self.count + 1)) ** (EMA_GAMMA + 1)
        for name, parameter in network.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - beta)


class State:
    """Networks that learn, an AdamW for each, the average of the first, and the number of steps taken. Made after the
    networks were laid on their devices (`parallel.prepare`); what wants no gradient by then does not learn."""

    def __init__(
        self, networks: Mapping[str, nn.Module], settings: LoopSettings, *, whole: bool = True, average: bool = True
    ):
        """`whole`: checkpoints hold what does not learn too. `average`: keep one."""
        self.whole = whole
        self.networks = dict(networks)
        self.learning = {
            name: {key: p for key, p in network.named_parameters() if p.requires_grad}
            for name, network in self.networks.items()
        }
        self.optimizers = {
            name: torch.optim.AdamW(
                _groups(parameters.values()), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
            )
            for name, parameters in self.learning.items()
        }
        self.first = next(iter(self.networks.values()))
        self.average = PowerAverage(self.first, active=average)
        self.step = 0

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds. Tensors of networks and of the average are the live ones."""
        values = dict[str, Tensor]()
        for name, network in self.networks.items():
            values |= {f"networks.{name}.{key}": value for key, value in self._kept(name, network).items()}
            for key, parameter in self.learning[name].items():
                moments = _moments(self.optimizers[name], parameter)
                values |= {f"optimizers.{name}.{key}.{moment}": value for moment, value in moments.items()}
        values |= {f"average.{key}": value for key, value in self.average.weights.items()}
        return values | {"step": torch.tensor(self.step), "averaged": torch.tensor(self.average.count)}

    def _kept(self, name: str, network: nn.Module) -> dict[str, Tensor]:
        """What of a network is saved."""
        present = cast("dict[str, Tensor]", network.state_dict())
        return {key: value for key, value in present.items() if self.whole or key in self.learning[name]}

    def save(self, folder: Path) -> None:
        """Writes a checkpoint beside `folder` and renames it into place; all processes call it together.

        Raises OSError, on all of them, if it cannot be written; what stood there before is untouched.
        """
        temporary = folder.with_name(f".{folder.name}.partial")

        def clear() -> None:  # also what a killed process left of an older one
            for left in folder.parent.glob(".*.partial") if _is_first() else ():
                shutil.rmtree(left, ignore_errors=True)

        def write() -> None:
            if together():
                distributed.barrier()
            with _quietly():
                save(self.state_dict(), checkpoint_id=str(temporary), no_dist=not together())

        def settle() -> None:
            if _is_first():
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)

        clear()
        if problem := _problem(write) or _problem(settle):
            clear()
            raise OSError(f"cannot write {folder}: {problem}")

    def save_step(self, run: Path, keep: int) -> None:
        """Writes the checkpoint of the present step into the folder of a run, of which the last `keep` stay."""
        self.save(run / f"step-{self.step:08d}")
        if _is_first():
            for old in checkpoints(run)[:-keep]:
                shutil.rmtree(old)

    def load(self, folder: Path) -> None:
        """Reads a checkpoint, whichever number of processes wrote it; all call it together.

        Raises ValueError if it is of other networks, before any weight is touched, or if it is damaged.
        """
        values = self.state_dict()
        _compare(folder, values)
        try:
            with _quietly():
                load(values, storage_reader=_Reader(folder), no_dist=not together())  # into the tensors themselves
        except (OSError, RuntimeError, ValueError, CheckpointException) as error:
            raise ValueError(f"{folder}: cannot be read, resume from an older one ({_cause(error)})") from error
        for name, parameters in self.learning.items():
            for key, parameter in parameters.items():
                stem, state = f"optimizers.{name}.{key}.", self.optimizers[name].state
                moments = {key.removeprefix(stem): value for key, value in values.items() if key.startswith(stem)}
                state.pop(parameter, None)
                if moments["step"] > 0:
                    state[parameter] = moments
        self.average.count, self.step = int(values["averaged"]), int(values["step"])

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Inside, the first network has the average's weights; afterwards, whatever happened, those it had, to the
        bit. It is to be looked at only: no training, no checkpoint."""
        own = {name: p for name, p in self.first.named_parameters() if name in self.average.weights}
        live = {name: p.detach().clone() for name, p in own.items()}
        try:
            _put(self.first, own, self.average.weights)
            yield
        finally:
            _put(self.first, own, live)

    def full_average(self) -> dict[str, Tensor]:
        """The first network's whole state dict on the CPU, averaged weights where there are, the present ones of what
        does not learn. All processes call it together; only the first gets something, the others {}."""
        values, learning = dict[str, Tensor](), next(iter(self.learning.values()))
        for name, present in cast("dict[str, Tensor]", self.first.state_dict()).items():
            if not (self.whole or name in learning or ".base_layer." in name):  # that which a LoRA changes is needed
                continue
            value = whole_tensor(self.average.weights.get(name, present).detach())
            if _is_first():
                values[name] = value.to("cpu", copy=True)
        return values


def _groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Sharded and other parameters apart, for no operation on many tensors at once takes both."""
    groups = dict[type, list[nn.Parameter]]()
    for parameter in parameters:
        groups.setdefault(type(parameter.data), []).append(parameter)
    return [{"params": group} for group in groups.values()]


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state of a parameter. Before its first gradient, which some never get, it has none: zeros then, which are
    what it begins with."""
    if optimizer.state.get(parameter):
        return dict(optimizer.state[parameter])
    zeros = torch.zeros_like(parameter.detach())
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


@torch.no_grad()
def _put(network: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    reshard(network)
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def read_average(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, whole, on the CPU, without the networks they belong to."""
    return _read_part(folder, "average.")


def read_network(folder: Path, name: str) -> dict[str, Tensor]:
    """The present weights of one network of a checkpoint, whole, on the CPU."""
    return _read_part(folder, f"networks.{name}.")


def _read_part(folder: Path, prefix: str) -> dict[str, Tensor]:
    reader = _Reader(folder)
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in _entries(reader).items()
        if key.startswith(prefix)
    }
    with _quietly():
        load(cast("dict[str, Any]", wanted), storage_reader=reader, no_dist=True)
    return {key.removeprefix(prefix): value for key, value in wanted.items()}


def checkpoints(folder: Path) -> Sequence[Path]:
    """The whole checkpoints of a run's folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / ".metadata").exists())


class _Unpickler(pickle.Unpickler):
    """Makes what PyTorch writes into a checkpoint's metadata, and nothing else: pickles can name any function."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        records = module_name.startswith("torch.distributed.checkpoint.") and isinstance(found, type)
        paths = module_name.startswith("pathlib") and isinstance(found, type) and issubclass(found, PurePath)
        if records or paths or isinstance(found, torch.dtype) or found in (torch.Size, _get_layout):
            return found
        raise pickle.UnpicklingError(f"names {module_name}.{global_name}")


class _Reader(FileSystemReader):
    """Of a checkpoint that somebody else may have made."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises ValueError if it is damaged, or holds anything but descriptions of tensors."""
        try:
            with (self.folder / ".metadata").open("rb") as file:
                _Unpickler(file).load()
            return super().read_metadata(*args, **kwargs)
        except Exception as error:  # of damaged pickles anything comes
            raise ValueError(f"{self.folder}: not a checkpoint that can be read ({first_line_of(error)})") from error


def _entries(reader: FileSystemReader) -> dict[str, Any]:
    return dict(reader.read_metadata().state_dict_metadata)


def _compare(folder: Path, values: Mapping[str, Tensor]) -> None:
    """ValueError if a checkpoint is not of these tensors, by name and shape."""
    saved = _entries(_Reader(folder))
    for what, names in (("lacks", values.keys() - saved.keys()), ("has unknown", saved.keys() - values.keys())):
        if names:
            raise ValueError(f"{folder}: not a checkpoint of this run's networks, it {what} {min(names)}")
    for name, value in values.items():
        if tuple(value.shape) != tuple(saved[name].size):
            raise ValueError(
                f"{folder}: not a checkpoint of this run's networks, {name} is {list(saved[name].size)} there and "
                f"{list(value.shape)} here"
            )


@contextmanager
def _quietly() -> Generator[None]:
    """That there is one process alone is nothing to be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
        yield


def _is_first() -> bool:
    return not together() or distributed.get_rank() == 0


def _problem(work: Callable[[], None]) -> str:
    """What went wrong in it: on the first process, or on another if nothing did; "" if nothing did anywhere."""
    problem = ""
    try:
        work()
    except (OSError, RuntimeError, CheckpointException) as error:
        problem = _cause(error)
    if not together():
        return problem
    problems: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(problems, problem)
    return next((each for each in problems if each), "")


def _cause(error: BaseException) -> str:
    """What went wrong first, in one line."""
    failures: Mapping[int, Any] = getattr(error, "failures", {})
    if failures:
        error = next(iter(failures.values()))[0]
    return getattr(error, "strerror", None) or first_line_of(error)
