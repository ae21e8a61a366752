"""Write the shipped list: `python -m scripts.l2p_prompts`. Each subject comes three times at most, each time in another
place, with other sentences around it and another opening; half are one sentence, half are detailed."""

import random
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pixdec.io.files import write_whole
from pixdec.l2p.prompt_lists import TOPICS, Alike, Written
from scripts.l2p_prompts import chinese, english

COUNT = 1000
OUTPUT = Path(__file__).parents[2] / "src/pixdec/l2p/prompts.jsonl"


def parts(text: str) -> list[str]:
    """Those between bars and line breaks."""
    return [part.strip() for part in text.replace("\n", "|").split("|") if part.strip()]


def prompts_of(topic: str, words: Any, space: str) -> list[str]:
    """30 prompts of a topic, the best spread first."""
    rng = random.Random(topic)
    subjects, places, own = (parts(text) for text in words.TOPICS[topic])
    details, views = own or list(words.DESIGN), words.DESIGN if topic.startswith("design") else words.VIEW
    made = list[str]()
    for turn in range(3):
        for number, subject in enumerate(rng.sample(subjects, len(subjects))):
            place = places[(subjects.index(subject) + 2 * turn + len(topic)) % len(places)]  # another one each turn
            opening = words.OPENINGS[(number + 2 * turn) % len(words.OPENINGS)]
            capital = subject[0].upper() + subject[1:]
            sentences = [opening.format(subject=subject, Subject=capital, place=place)]
            if (number + turn) % 2:
                more = [rng.choice(details), rng.choice(words.DESIGN if not own else words.LIGHT), rng.choice(views)]
                more = list(dict.fromkeys(more))
                sentences += rng.sample(more, rng.randint(2, len(more)) if len(more) > 1 else 1)
            elif space == " " or topic.startswith("design"):
                sentences.append(rng.choice(details))
            else:
                sentences.append(rng.choice(words.LIGHT))
            made.append(space.join(sentences))
    return made


def main() -> None:
    ways = [(topic, *way) for topic in TOPICS for way in (("en", english, " "), ("zh", chinese, ""))]
    lists = {(topic, name): prompts_of(topic, words, space) for topic, name, words, space in ways}
    alike, found = Alike(), list[Written]()
    for way in islice(cycle(lists), 5000):
        topic, language = way
        if lists[way] and len(found) < COUNT:
            prompt = lists[way].pop(0)
            if (other := alike.find(prompt)) is None:
                found.append(Written(f"{language}-{len(found):06}", topic, prompt))
            else:
                print(f"left out: {prompt}\n    like: {other}")
    write_whole(OUTPUT, "".join(f"{each.line()}\n" for each in found))
    print(f"{OUTPUT}: {len(found)} prompts")


if __name__ == "__main__":
    main()
