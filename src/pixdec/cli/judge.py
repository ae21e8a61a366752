"""`pixdec judge`: which of two methods' images a language model, or a person, prefers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pixdec.cli.options import Flag, Json, Output
from pixdec.cli.report import Report, progress, tell
from pixdec.io.files import prepare, write_whole

if TYPE_CHECKING:
    from pixdec.evaluate.judge.asking import Asking
    from pixdec.evaluate.judge.endpoint import Judge as Asked
    from pixdec.evaluate.judge.pairs import Failed, Pair, Views

Folders = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="OURS OTHER ...", help_behavior_hint="(two folders or more; none: only count)"),
]


@dataclass(frozen=True)
class Judge:
    """Have a judge choose between images of the same name in OURS and in each OTHER folder.

    The judge is a model behind an OpenAI-compatible endpoint (--endpoint, --model), which sees every view of a pair
    twice, in both orders, or a person (--human), who chooses on a page of this machine.

    OUT gets judge.jsonl, a line for each answer, and what all of them add up to, judge.md and judge.json. The same
    command goes on where it was interrupted; other judges and folders join the table.
    """

    output: Output
    """A folder: it is created."""
    folders: Folders = ()
    endpoint: str | None = None
    """Base URL, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """The model's name there; fake needs no endpoint and prefers the richer spectrum."""
    human: str | None = None
    """Your name: serve a page on which you choose, with the keys 1 and 2."""
    prompt: str | None = None
    """A file with another prompt."""
    controls: Flag = False
    """Also judge OURS beside itself and beside itself blurred: must give 50 %, and more than 95 %."""
    max_side: int | None = None
    """The whole image is shown with its longer side shrunk to this; 0: not shown. Without it 1024, a person 0."""
    crops: int | None = None
    """Crops at 100 %, at places that the images' hash fixes; without it 3, a person 1."""
    crop_side: int | None = None
    """Their side in pixels; without it 1024, for a person 640."""
    structured: Flag = False
    """Ask for the verdict as JSON by a schema, where the model can do that."""
    body: str = "{}"
    """JSON: further fields of the request; null removes one: '{"temperature": null, "reasoning_effort": "low"}'."""
    key_env: str = "PIXDEC_JUDGE_KEY"
    """The environment variable that holds the endpoint's key."""
    price: tuple[float, float] | None = None
    """USD for a million tokens of input and of output."""
    max_cost: float | None = None
    """USD that this judge may cost in OUT, earlier runs included; needs --price."""
    concurrency: int = 4
    """Pairs that are asked about at once."""
    timeout: float = 120
    """Seconds for an answer."""
    dry_run: Flag = False
    """Print how many calls and tokens there would be, and their cost; make none."""
    seed: int = 0
    """Of the order in which a person sees the pairs, of the fake judge, and of the intervals."""
    port: int = 0
    """Of the page; 0: any that is free."""
    json: Json = False

    def run(self) -> int:
        from pixdec.evaluate.judge.asking import ROUNDS
        from pixdec.evaluate.judge.pairs import find_pairs

        report, rounds = Report(json_lines=self.json), Path(self.output) / ROUNDS
        if not self.folders:
            return self._count(report, rounds)
        if (self.human is None) == (self.model is None):
            raise ValueError("name one judge: --endpoint URL --model NAME, --model fake, or --human NAME")
        if self.human is not None and self.dry_run:
            raise ValueError("dry_run=True: a person costs nothing to ask; leave it out")
        views = self._views()
        judge, asking = (self._judge(), self._asking(views)) if self.human is None else (None, None)
        pairs = find_pairs(self.folders[0], self.folders[1:], controls=self.controls)
        if judge is not None and asking is not None and self.dry_run:
            self._plan(pairs, judge, rounds, asking)
            return 0
        prepare([rounds])
        if judge is not None and asking is not None:
            self._ask(pairs, judge, rounds, asking, report)
        else:
            self._serve(pairs, rounds, views, report)
        return self._count(report, rounds)

    def _judge(self) -> Asked:
        from pixdec.evaluate.judge.endpoint import Endpoint, FakeJudge

        if self.model == "fake" and self.endpoint is None:
            return FakeJudge(self.seed)
        if self.endpoint is None:
            raise ValueError(f"model={self.model}: where? Name its --endpoint, such as http://127.0.0.1:8000/v1")
        try:
            body: Any = json.loads(self.body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ValueError(f"body={self.body}: expected a JSON object")
        key = os.environ.get(self.key_env, "").strip() or None
        return Endpoint(self.endpoint, self.model or "", key, body, structured=self.structured, timeout=self.timeout)

    def _asking(self, views: Views) -> Asking:
        from pixdec.evaluate.judge.asking import Asking, Price
        from pixdec.evaluate.judge.prompt import PROMPT, read_prompt

        prompt = PROMPT if self.prompt is None else read_prompt(self.prompt)
        price = None if self.price is None else Price(*self.price)
        return Asking(prompt, views, self.concurrency, price, self.max_cost)

    def _views(self) -> Views:
        from pixdec.evaluate.judge.human import VIEWS
        from pixdec.evaluate.judge.pairs import Views

        given = {"max_side": self.max_side, "crops": self.crops, "crop_side": self.crop_side}
        usual = Views() if self.human is None else VIEWS
        return replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _plan(self, pairs: list[Pair | Failed], judge: Asked, rounds: Path, asking: Asking) -> None:
        from pixdec.evaluate.judge.asking import plan

        found = plan(pairs, judge, rounds, asking)
        if self.json:
            print(json.dumps(asdict(found)))
            return
        cost = "cost unknown without --price" if found.cost is None else f"{found.cost:.2f} USD at most"
        tokens = f"about {found.tokens[0]} tokens in, at most {found.tokens[1]} out"
        print(f"{found.calls} calls, {found.earlier} made earlier; {tokens}; {cost}")

    def _ask(self, pairs: list[Pair | Failed], judge: Asked, rounds: Path, asking: Asking, report: Report) -> None:
        from pixdec.evaluate.judge.asking import judge_pairs
        from pixdec.evaluate.judge.pairs import Failed

        with progress(len(pairs), "pair") as bar:
            for outcomes in judge_pairs(pairs, judge, rounds, asking):
                bar.update()
                for outcome in outcomes:
                    failure = outcome.reason if isinstance(outcome, Failed) else outcome.failure
                    if failure is not None:
                        report.failed(outcome.title, ValueError(failure))
                    elif not isinstance(outcome, Failed):
                        chosen = outcome.ours if outcome.won else outcome.other
                        report.done({**asdict(outcome), "won": outcome.won}, f"{outcome.title}  {chosen}")

    def _serve(self, pairs: list[Pair | Failed], rounds: Path, views: Views, report: Report) -> None:
        from pixdec.evaluate.judge.human import Session, serve

        session = Session(pairs, self.human or "", rounds, views, self.seed)
        if session.next() is not None:
            left = len(session.questions) - len(session.done)
            serve(session, self.port, lambda url: tell(f"{left} questions on {url}"))
        for failed in session.failed:
            report.failed(failed.title, ValueError(failed.reason))

    def _count(self, report: Report, rounds: Path) -> int:
        from pixdec.evaluate.judge.rates import summarize, table

        summary = summarize(rounds, seed=self.seed)
        lines = table(summary)
        for name, text in (("json", json.dumps(summary, indent=1)), ("md", "\n".join(lines))):
            write_whole(rounds.with_suffix(f".{name}"), text + "\n")
        if self.json:
            print(json.dumps(summary))
        else:
            print(*lines, sep="\n")
        return report.exit_code
