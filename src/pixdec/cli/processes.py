"""One process of several, as torchrun starts them: its share of the work, its device, and the end of all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pixdec.cli.report import Report, one_line, progress, tell

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixdec.models.execution import Context

_PATIENCE = timedelta(days=7)  # for the slowest process

Piece = TypeVar("Piece")  # of the work; its repr tells it from all others


@dataclass(frozen=True)
class Process:
    """`rank` of `world` processes, `local` among those of its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Process:
        """As RANK, WORLD_SIZE and LOCAL_RANK say; without the first two, the only process.

        Raises:
            ValueError: they are no numbers, or do not fit each other.
        """
        given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if given[0] is None or given[1] is None:
            return cls()
        try:
            rank, world, local = (int(text) for text in (given[0], given[1], given[2] or given[0]))
        except ValueError as error:
            raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK are {given}; expected numbers, as torchrun sets") from error
        if not (0 <= rank < world and local >= 0):
            raise ValueError(f"RANK {rank} of WORLD_SIZE {world}: expected 0 to {world - 1}")
        return cls(rank, world, local)

    def takes(self, number: int) -> bool:
        """Whether piece `number` of the work is this process's: every `world`-th, beginning with `rank`."""
        return number % self.world == self.rank

    def part_of(self, pieces: Sequence[Piece], cost: Callable[[Piece], float], team: int = 1) -> list[Piece]:
        """The pieces of the work that are this process's, in their order; every process finds the same parts.

        Costs are evened out: the largest piece is given out first, each to whoever has least so far. `team` processes
        in a row do each of their pieces together.

        Raises:
            ValueError: the processes cannot be parted into teams of that size.
        """
        if team < 1 or self.world % team:
            raise ValueError(
                f"{team} of {self.world} {'process' if self.world == 1 else 'processes'} for each image: take a number "
                "that divides theirs (torchrun --nproc-per-node N starts N)"
            )
        costs = [cost(piece) for piece in pieces]
        loads, owners = [0.0] * (self.world // team), [0] * len(pieces)
        for place in sorted(range(len(pieces)), key=lambda place: (-costs[place], place)):
            owners[place] = min(range(len(loads)), key=loads.__getitem__)
            loads[owners[place]] += costs[place]
        return [piece for piece, owner in zip(pieces, owners, strict=True) if owner == self.rank // team]

    def carry_out(
        self,
        report: Report,
        plan: Callable[[], Sequence[Piece]],
        cost: Callable[[Piece], float],
        make: Callable[[Sequence[Piece]], None],
        team: int = 1,
    ) -> int:
        """A verb: `plan` finds the whole work, the same in every process, and `make` does this process's part of it
        (see `part_of`); it is not called for nothing, but where teams are formed. The exit code, the worst of all.

        No process makes anything before all have planned, so none takes for an input what another wrote; and none
        leaves before all are done, for torchrun ends all as soon as one exits with an error. What is wrong with a plan
        is said by one of those that found it; what goes wrong in the making, at once, by who met it. In a team it is
        raised, as it is in the only process: the others of the team cannot go on.

        Raises:
            ValueError, OSError: as `plan` and `make`, in the only process; as `make`, in a team.
        """
        if self.world == 1:
            if pieces := self.part_of(plan(), cost, team):
                make(pieces)
            return report.exit_code
        mine, found, problem = list[Piece](), "", ""
        try:
            pieces = plan()
            mine, found = self.part_of(pieces, cost, team), hashlib.sha256(repr(pieces).encode()).hexdigest()
        except (ValueError, OSError) as error:
            problem = one_line(error)
        failed = self._refused(found, problem)
        try:
            if (mine or team > 1) and not failed:
                make(mine)
        except BrokenPipeError as error:  # whoever read the output has seen enough; the others are still at work
            if team > 1:
                raise OSError("the output was closed, and the others of the team cannot go on alone") from error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, OSError) as error:
            if team > 1:
                raise
            failed = True
            tell(one_line(error))
        return 2 if self.any_failed(failed or report.failures > 0) else 0

    def attempt(self, report: Report, source: str | Path, team: int | None = None) -> AbstractContextManager[None]:
        """As `report.attempt`, for what all processes of a team, or all there are, try alike: only their first says
        what went wrong."""
        return report.attempt(source) if self.leads(team) else contextlib.suppress(ValueError, OSError)

    def leads(self, team: int | None = None) -> bool:
        """Whether this is the first of its team of so many, or of all processes: who writes and speaks for them."""
        return self.rank % (team or self.world) == 0

    def device(self, named: str | None) -> str:
        """The device of this process: the one named, else the fastest; of several GPUs, its own.

        Raises:
            ValueError: one GPU is named for several processes, or there are fewer GPUs than processes.
        """
        from pixdec.devices import best_device

        kind = str(best_device()) if named is None else named
        if self.world == 1 or not kind.startswith("cuda"):
            return kind
        if kind != "cuda":
            raise ValueError(f"--device {named}: of {self.world} processes each takes its own GPU; say --device cuda")
        from pixdec.inference.sharing import own_cuda

        return str(own_cuda(self.local))

    def context(self, device: str, team: int) -> Context | None:
        """With whom this process, on this device, shares each image: the others of its team, None if it has none. All
        processes call it, also those of teams without work.

        Raises:
            ValueError: as `pixdec.inference.sharing.meet`.
        """
        if team == 1:
            return None
        import torch

        from pixdec.inference.sharing import context_of, meet

        return context_of(meet(torch.device(device), team).get_group("context"))

    def progress(self, total: int, unit: str) -> tqdm[None]:
        """A progress bar that only the first process shows."""
        if self.rank == 0:
            return progress(total, unit)
        from tqdm import tqdm

        return cast("tqdm[None]", tqdm(disable=True))

    def any_failed(self, failed: bool) -> bool:
        """Whether this or another process failed; returns when all are done.

        torchrun ends all processes as soon as one exits with an error: none may leave while others still work. Without
        MASTER_ADDR the processes do not know each other, and each speaks for itself.
        """
        if not self._meets():
            return failed
        import torch
        from torch import distributed

        failures = torch.tensor(int(failed))
        distributed.all_reduce(failures)
        return bool(failures)

    def _refused(self, found: str, problem: str) -> bool:
        """Whether a process met a problem, or found another plan than the others did. One that met it says it."""
        seen = self._from_all((found, problem))
        if len({plan for plan, _ in seen}) > 1 and not any(each for _, each in seen):
            problem = "the processes found different inputs; all, on every machine, must see the same files"
            seen = [(plan, problem) for plan, _ in seen]
        earlier = [each for _, each in seen[: self.rank]] if len(seen) > 1 else []
        if problem and problem not in earlier:
            tell(problem)
        return any(each for _, each in seen)

    def _from_all(self, value: tuple[str, str]) -> list[tuple[str, str]]:
        """The values of all processes; of this one alone if they do not know each other."""
        if not self._meets():
            return [value]
        from torch import distributed

        values = [value] * self.world
        distributed.all_gather_object(values, value)
        return values

    def _meets(self) -> bool:
        """Whether there are others, which this process has met now."""
        if self.world == 1 or "MASTER_ADDR" not in os.environ:
            return False
        from pixdec.inference.sharing import join_all

        join_all(patience=_PATIENCE)
        return True
