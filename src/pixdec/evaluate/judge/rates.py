"""What the rounds of judges add up to: win rates with intervals, position bias, agreement, failures and costs.

The two rounds of a pair, and its crops, are not independent: intervals are bootstrapped over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pixdec.evaluate.judge.asking import ROUNDS
from pixdec.evaluate.judge.pairs import BLURRED, CONTROLS, SAME
from pixdec.evaluate.judge.rounds import Round, read_rounds
from pixdec.evaluate.report.tables import Table
from pixdec.evaluate.statistics import bootstrap

Key = TypeVar("Key", bound=tuple[Any, ...])


def summarize(path: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """The counts of a file of rounds, or of the folder that holds it; plain values, for JSON.

    Args:
        path: judge.jsonl, or its folder.
        seed: of the bootstrap.

    Returns:
        "rows": one for each judge, settings, other method and view. win_rate is the share of valid rounds that chose
        ours, with its 95 % interval [low, high] over images; consistent_win_rate counts only those shown twice where
        both rounds chose the same method; consistency is their share of those with two valid rounds; first_rate is how
        often image A is chosen, each order weighed alike (0.5: no bias), and swap_delta the win rate of ours shown
        first less that of ours shown second. A rate of nothing is None. Controls have "passed".
        "agreement": of two judges over images on which both have a majority: share and Gwet's AC1.
        "failures": each round without a verdict. "judges": calls, tokens, cost, models and times.

    Raises:
        ValueError: there are no rounds, or a line is none.
    """
    path = Path(path)
    path = path / ROUNDS if path.is_dir() else path
    lines = read_rounds(path)
    if not lines:
        raise ValueError(f"{path}: no rounds of a judge here; make some with pixdec judge")
    rounds = _current(lines)
    groups = _grouped(rounds, lambda each: (each.judge, each.settings, each.ours, each.other, each.view))
    return {
        "file": path.name,
        "rows": [_row(groups[key], seed) for key in sorted(groups, key=lambda key: (key[3] in CONTROLS, key))],
        "agreement": _agreement(rounds, seed),
        "failures": [
            _names(each) | {name: getattr(each, name) for name in ("pair", "ours_first", "answer")} | {"reason": reason}
            for each in rounds
            if (reason := each.failure) is not None
        ],
        "judges": {judge: _totals(group) for (judge,), group in _grouped(lines, lambda each: (each.judge,)).items()},
    }


def rates_table(summary: Mapping[str, Any]) -> Table:
    """A row for each judge, other method and view."""
    rows = list[list[str]]()
    for row in summary["rows"]:
        won = f"{_percent(row['win_rate'])} [{_percent(row['low'])}, {_percent(row['high'])}]"
        if "passed" in row:
            won += " as it should" if row["passed"] else " **not as it should**"
        named = [row["judge"], f"{row['ours']}, {row['other']}", row["view"]]
        counts = [str(row[name]) for name in ("images", "valid", "failed")]
        both = f"{_percent(row['consistency'])} of {row['shown_twice']}"
        rows.append([*named, *counts, won, _percent(row["consistent_win_rate"]), both, _percent(row["first_rate"])])
    head = ["judge", "ours, other", "view", "images", "rounds", "failed", "win rate"]
    return Table([*head, "if consistent", "consistency", "A chosen"], rows)


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Agreement of judges, calls and costs, a line each."""
    lines = [
        f"{' and '.join(each['judges'])} agree on {_percent(each['share'])} [{_percent(each['low'])}, "
        f"{_percent(each['high'])}] of {each['images']} images (Gwet's AC1 {each['ac1']:.2f})"
        for each in summary["agreement"]
    ]
    for judge, total in summary["judges"].items():
        cost = f", {total['cost']:.4f} USD" if total["cost"] else ""  # without a price nothing is known
        read, written = total["tokens"]
        lines.append(f"{judge}: {total['calls']} calls, {read} tokens in, {written} out{cost}")
    return lines


def table(summary: Mapping[str, Any]) -> list[str]:
    """A summary as lines of Markdown."""
    return [*rates_table(summary).markdown(), *(f"\n{note}" for note in notes(summary))]


def _current(lines: Iterable[Round]) -> list[Round]:
    """The last line of each slot, of the images as they last were."""
    last = {each.slot: each for each in lines}
    digests = {slot[:-1]: each.digests for slot, each in last.items()}
    for each in lines:
        digests[each.slot[:-1]] = each.digests
    return [each for slot, each in last.items() if each.digests == digests[slot[:-1]]]


def _row(rounds: Sequence[Round], seed: int) -> dict[str, Any]:
    valid = [each for each in rounds if each.won is not None]
    images = _grouped(valid, lambda each: (each.pair,))
    counts = np.array([(sum(bool(each.won) for each in group), len(group)) for group in images.values()])
    low, high = bootstrap(counts, seed) if images else (None, None)
    twice = [group for group in _grouped(valid, lambda each: each.slot[:-1]).values() if len(group) == 2]
    alike = [group[0].won for group in twice if group[0].won == group[1].won]
    first, second = (_share([each.won for each in valid if each.ours_first is order]) for order in (True, False))
    both = None if first is None or second is None else (first, second)
    row: dict[str, Any] = {
        **_names(rounds[0]),
        "settings": rounds[0].settings,
        "images": len(images),
        "valid": len(valid),
        "failed": len(rounds) - len(valid),
        "win_rate": _share([each.won for each in valid]),
        "low": low,
        "high": high,
        "consistent_win_rate": _share(alike),
        "consistent": len(alike),
        "shown_twice": len(twice),
        "consistency": len(alike) / len(twice) if twice else None,
        "first_rate": None if both is None else (both[0] + 1 - both[1]) / 2,
        "swap_delta": None if both is None else both[0] - both[1],
    }
    rate = row["win_rate"]
    if row["other"] == SAME:
        row["passed"] = low is not None and high is not None and low <= 0.5 <= high
    elif row["other"] == BLURRED:
        row["passed"] = rate is not None and rate > 0.95
    return row


def _agreement(rounds: Sequence[Round], seed: int) -> list[dict[str, Any]]:
    """Of each two judges (with their settings) on the images that both preferred one method of."""
    choices = dict[str, dict[tuple[str, str, str], bool]]()
    names = [tuple(name) for name in _grouped(rounds, lambda each: (each.judge, each.settings))]
    for (judge, settings, *image), group in _grouped(
        rounds, lambda each: (each.judge, each.settings, each.ours, each.other, each.pair)
    ).items():
        votes = [each.won for each in group if each.won is not None]
        if 2 * sum(votes) != len(votes) and image[1] not in CONTROLS:
            several = sum(name[0] == judge for name in names) > 1
            name = f"{judge} ({settings})" if several else judge
            choices.setdefault(name, {})[image[0], image[1], image[2]] = 2 * sum(votes) > len(votes)
    found = list[dict[str, Any]]()
    for one, other in combinations(choices, 2):
        common = sorted(choices[one].keys() & choices[other].keys())
        if not common:
            continue
        pairs = [(choices[one][image], choices[other][image]) for image in common]
        counts = np.array([(a == b, 1) for a, b in pairs])
        share, prevalence = float(counts[:, 0].mean()), float(np.mean(pairs))
        chance = 2 * prevalence * (1 - prevalence)  # at most 1/2
        low, high = bootstrap(counts, seed)
        about = {"judges": [one, other], "images": len(common), "share": share, "low": low, "high": high}
        found.append({**about, "ac1": (share - chance) / (1 - chance)})
    return found


def _totals(rounds: Sequence[Round]) -> dict[str, Any]:
    times = [each.time for each in rounds if each.time]
    return {
        "calls": sum(each.tries for each in rounds),
        "tokens": [sum(each.tokens[index] for each in rounds) for index in (0, 1)],
        "cost": math.fsum(each.cost for each in rounds),
        "models": sorted({each.model for each in rounds if each.model}),
        "first": min(times, default=None),
        "last": max(times, default=None),
    }


def _grouped(rounds: Iterable[Round], by: Callable[[Round], Key]) -> dict[Key, list[Round]]:
    groups = dict[Key, list[Round]]()
    for each in rounds:
        groups.setdefault(by(each), []).append(each)
    return groups


def _names(found: Round) -> dict[str, str]:
    return {"judge": found.judge, "ours": found.ours, "other": found.other, "view": found.view}


def _share(votes: Sequence[bool | None]) -> float | None:
    return sum(map(bool, votes)) / len(votes) if votes else None


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.0%}"
