"""The plans of the published recipes, as Markdown.

python -m pixdec.bench.plans > docs/benchmarks/training-plan.md
"""

from collections.abc import Sequence

from pixdec.train.hardware import GIB, hardware
from pixdec.train.plan import Plan, plan
from pixdec.train.recipes import DECODERS, PRIORS, STUDENTS, Recipe

HEAD = """# Plans of the published recipes at 2K

Made by `python -m pixdec.bench.plans > docs/benchmarks/training-plan.md`; one of them by
`pixdec train decoder v1-5 --plan --hardware h100 --ranks 8`.

These are predictions: none of these runs was made. What they count is the training code itself, run on tensors without
values. That count is checked against real steps of small networks (`tests/train/test_plan.py`: floating-point
operations exactly, bytes within 15 %, 11 % at most where it was last run on one core of an AMD EPYC) and of the bundled
decoder's recipe ([measured](training-cpu.json) by `python -m pixdec.bench.training` on a machine that was busy with
other work, so that its seconds of the processor count, not those of the clock). Seconds rest on how much of the device
published decodes used, and take every process as always busy: expect to be slower.
"""


def main(device: str = "h100") -> None:
    """Prints a table of the recipes on 8 and on 64 devices, fewer where a batch has fewer images, then the whole plans
    for 8."""
    recipes: Sequence[Recipe] = (
        PRIORS["paper_2k"](),
        DECODERS["paper_2k"](),
        DECODERS["v1_5"](),
        STUDENTS["paper_2k"](),
    )
    plans = [_fitting(recipe, device, ranks) for recipe in recipes for ranks in (8, 64)]
    print(HEAD)
    rows = [_row(words, found) for words, found in plans]
    head = ("recipe", "processes", "set besides", "images a pass", "GiB of", "a step", "the run", "device hours")
    for row in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(row)} |")
    for words, found in plans:
        if found.ranks == 8:
            print()
            for line in found.lines():
                print(f"#{line}" if line.startswith("#") else line)
            if words:
                print(f"- Set besides: `{words}`.")


def _fitting(recipe: Recipe, device: str, ranks: int) -> tuple[str, Plan]:
    """The plan of a recipe on so many processes, at most one for each image, with what must be set for it to fit."""
    found = plan(recipe, hardware(device), min(ranks, recipe.loop.batch))
    if found.advice is None:
        return "", found
    return found.advice.words, plan(found.advice.recipe, hardware(device), found.advice.ranks)


def _row(words: str, found: Plan) -> tuple[str, ...]:
    return (
        found.title,
        str(found.ranks),
        f"`{words}`" if words else "",
        str(found.images),
        f"{found.memory.total / GIB:.0f} of {found.hardware.memory / GIB:.0f}",
        f"{found.seconds:.1f} s",
        f"{found.hours:,.0f} hours",
        f"{found.hours * found.ranks:,.0f}",
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
