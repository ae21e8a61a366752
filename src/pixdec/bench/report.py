"""The figures of a bench as Markdown: latency and memory, ours beside the others, and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pixdec.bench.rows import Bench, Row, seconds_of

TABLE = "bench.md"
FAILURES = {"out of memory": "out of memory", "over the limit": "over the limit", "killed": "killed", "failed": "—"}


def markdown(bench: Bench, plot: str | None = None) -> str:
    """The whole page. `plot`: the picture's name, beside it."""
    lines = [f"# `pixdec bench`: {bench.model['name']} on {bench.machine['name']}", "", *_facts(bench)]
    if plot is not None:
        lines += ["", f"![Latency and memory against megapixels]({plot})"]
    lines += ["", "## Latency", "", _LATENCY, "", *_grid(bench, _latency)]
    if any(row.is_ours and row.status == "ok" for row in bench.rows):
        lines += ["", "First calls, with what is loaded and compiled then:", ""]
        lines += _grid(bench, lambda row: seconds_of(row.first or 0.0), ours=True)
    lines += ["", "## Peak memory", "", _memory_words(bench), "", *_grid(bench, _memory)]
    lines += ["", *_parts(bench)]
    lines += _against_plain(bench)
    lines += _roofline(bench)
    lines += _reasons(bench)
    return "\n".join(lines) + "\n"


_LATENCY = (
    "Median of the calls that count (least to most), from a latent to images, float32 in [0,1], both on the device. "
    "Columns are output sides in pixels."
)


def _facts(bench: Bench) -> Iterator[str]:
    machine, versions, settings = bench.machine, bench.versions, bench.settings
    where = [f"{machine['name']} ({machine['device']})"]
    if "processor" in machine:
        where.append(f"{machine['memory'] / 1e9:.0f} GB; host {machine['processor']}")
    where.append(f"{machine['cores']} cores, threads used {machine['threads']}, {machine['instructions']}")
    libraries = ", ".join(f"{name} {version}" for name, version in bench.libraries.items())
    cuda = f", CUDA {versions['cuda']}" if versions["cuda"] else ""
    model = bench.model
    facts = {
        "machine": ", ".join(where) + f", {machine['system']}",
        "versions": f"pixdec {versions['pixdec']} (code {versions['code']}), PyTorch {versions['torch']}{cuda}, "
        f"Python {versions['python']}; {libraries}",
        "model": f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['space']} latents, "
        f"{model['scale']} times larger, {settings['steps'] or 'its own number of'} steps",
        "settings": f"{settings['dtype']}, batch {settings['batch']}, {settings['warmup']} calls to warm up, then "
        f"{settings['runs']} that count; each row in a process of its own",
    }
    for command in bench.commands:
        facts["command"] = f"{facts['command']}, `{command}`" if "command" in facts else f"`{command}`"
    return (f"- {name}: {fact}" for name, fact in facts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]


def _grid(bench: Bench, show: Callable[[Row], str], *, ours: bool = False) -> list[str]:
    """Methods down, sides across."""

    def cell(method: str, side: int) -> str:
        row = bench.row(method, side)
        return "" if row is None else show(row) if row.status == "ok" else FAILURES[row.status]

    methods = [name for name in bench.methods if not ours or name in _ours(bench)]
    rows = [(name, *(cell(name, side) for side in bench.sides)) for name in methods]
    return _table(("method", *(f"{side}²" for side in bench.sides)), rows)


def _ours(bench: Bench) -> list[str]:
    return list(dict.fromkeys(row.method for row in bench.rows if row.is_ours))


def _latency(row: Row) -> str:
    least, most = (seconds_of(value) for value in (min(row.seconds), max(row.seconds)))
    count = f", n {len(row.seconds)}"
    strange = "" if row.finite else ", not finite"
    return f"{seconds_of(row.median)} ({least} to {most}{count}{strange})"


def _memory(row: Row) -> str:
    return _size_of(row.memory["peak"])


def _size_of(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _memory_words(bench: Bench) -> str:
    how = sorted({row.memory["how"] for row in bench.rows if row.status == "ok"})
    apart = ""
    if any(row.memory.get("libraries") is not None for row in bench.rows):
        apart = " The process before it loads weights (Python, PyTorch and what a method imports) is not in it."
    return (
        f"The most that was held at once from the first call on, weights included ({'; '.join(how) or 'no figures'})."
        f"{apart} No caption encoder is loaded: captions are random embeddings of the right shape."
    )


def _parts(bench: Bench) -> list[str]:
    """By part, for every row with figures."""
    rows = list[tuple[str, ...]]()
    apart = any(row.memory.get("libraries") is not None for row in bench.rows)
    for name in bench.methods:
        for side in bench.sides:
            row = bench.row(name, side)
            if row is None or row.status != "ok":
                continue
            memory = row.memory
            text = f"{memory['text'] / 1e6:.1f} MB" if memory["text"] else "none"
            parts = [_size_of(memory["weights"]), text, _size_of(memory["activations"]), _memory(row)]
            rows.append((name, f"{side}²", *parts, *([_size_of(memory["libraries"])] if apart else [])))
    head = ("method", "output", "weights", "caption embeddings", "activations", "peak")
    return _table((*head, "libraries, apart") if apart else head, rows)


def _against_plain(bench: Bench) -> list[str]:
    def ratio(row: Row) -> str:
        plain = bench.row("plain", row.side)
        if plain is None or plain.status != "ok":
            return "no plain figure"
        faster, less = plain.median / row.median, row.memory["peak"] / plain.memory["peak"]
        return f"{faster:.2f}× as fast, {less:.0%} of the memory"

    if "plain" not in bench.methods or len(_ours(bench)) < 2:
        return []
    table = [line for line in _grid(bench, ratio, ours=True) if not line.startswith("| plain |")]
    return ["", "## Against the plain path", "", *table]


def _roofline(bench: Bench) -> list[str]:
    peaks, rows = bench.peaks, list[tuple[str, ...]]()
    for name in _ours(bench):
        for side in bench.sides:
            row = bench.row(name, side)
            if row is None or row.status != "ok" or not row.counted:
                continue
            flops, moved = row.counted["flops"], row.counted["moved"]
            floor = flops / peaks[bench.settings["dtype"]]
            rows.append(
                (
                    name,
                    f"{side}²",
                    f"{flops / 1e12:.3g}",
                    f"{moved / 1e9:.3g}",
                    seconds_of(floor),
                    seconds_of(moved / peaks["bandwidth"]),
                    seconds_of(row.median),
                    f"{floor / row.median:.0%}",
                )
            )
    if not rows:
        return []
    measured = (
        f"Measured here: {peaks['bfloat16'] / 1e12:.3g} TFLOP/s in bfloat16 and {peaks['float32'] / 1e12:.3g} in "
        f"float32 (a large matrix product), {peaks['bandwidth'] / 1e9:.4g} GB/s (a large copy, read and written)."
    )
    counted = (
        "Counted are the network's calls of a decode: products, convolutions and attention as operations; as bytes, "
        "what every operation reads and writes if it runs by itself, so that what is fused or stays in a cache moves "
        "less. The share is that of the measured peak in the precision of the bench, of the whole decode's time."
    )
    head = ("method", "output", "TFLOP", "GB moved", "at the peak", "at the bandwidth", "measured", "share of the peak")
    return ["", "## Roofline", "", measured, counted, "", *_table(head, rows)]


def _reasons(bench: Bench) -> list[str]:
    missing = [row for row in bench.rows if row.status != "ok"]
    if not missing:
        return []
    lines = [f"- {row.method}, {row.side}²: {row.status}: {row.reason}" for row in missing]
    return ["", "## Without figures", "", *lines]


__all__ = ["TABLE", "markdown"]
