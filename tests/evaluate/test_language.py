"""Language models that score images: prompts, softmax and parse, on tiny random models and recorded answers."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pixdec.evaluate.metrics import language
from pixdec.evaluate.metrics.language import CODES, DeQA, UniPercept, VisualQualityR1, expected_value, parse_rating
from pixdec.evaluate.metrics.table import open_metrics

transformers = pytest.importorskip("transformers")

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8))
WIDTH = 16


class Words:
    """A tokenizer of words, which begins texts with token 0."""

    bos_token_id = 0

    def __init__(self, begin: bool = True):
        self.known, self.begin = dict[str, int](), [0] if begin else []

    def convert_tokens_to_ids(self, word: str) -> int:
        return self.known.setdefault(word, len(self.known) + 1)

    def __call__(self, text: str, return_tensors: str | None = None) -> Any:
        for mark in ("<IMG_CONTEXT>", "<img>", "</img>"):
            text = text.replace(mark, f" {mark} ")
        ids = [*self.begin, *(self.convert_tokens_to_ids(word) for word in text.split())]
        if return_tensors is None:
            return {"input_ids": ids}
        found = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return transformers.BatchEncoding(found)


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=400, **sizes)).eval()


class Owl(nn.Module):
    """As mPLUG-Owl2 is called: token -200 is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.llama, self.look = llama(), nn.Linear(3, WIDTH)

    def forward(self, ids: Tensor, images: Tensor) -> Any:
        where = int((ids[0] == language.IMAGE_TOKEN).nonzero())
        words = self.llama.get_input_embeddings()(ids.clamp(min=0))
        seen = self.look(images.mean((2, 3)))[:, None]
        return self.llama(inputs_embeds=torch.cat([words[:, :where], seen, words[:, where + 1 :]], 1))


def test_deqa_weighs_the_levels_after_its_question() -> None:
    torch.manual_seed(1)
    tokenizer, model = Words(), Owl().eval()
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 448}, crop_size=448)
    scorer = DeQA(model, tokenizer, processor)
    ids = tokenizer("USER: How would you rate the quality of this image?")["input_ids"]
    rest = tokenizer("ASSISTANT: The quality of the image is")["input_ids"][1:]
    assert scorer.ids == [*ids, -200, *rest]
    assert scorer.levels == [tokenizer.known[level] for level in ("excellent", "good", "fair", "poor", "bad")]
    square = Image.new("RGB", (80, 80), tuple(int(255 * each) for each in processor.image_mean))
    square.paste(IMAGE, (0, 20))
    pixels = processor(square, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 448, 448)
    with torch.no_grad():
        weights = model(torch.tensor([scorer.ids]), pixels).logits[0, -1, scorer.levels].exp()
    assert scorer.score(IMAGE) == pytest.approx(float((weights @ torch.arange(5.0, 0, -1)) / weights.sum()), abs=1e-4)
    assert scorer.score(Image.new("RGB", (80, 40))) != scorer.score(IMAGE)


class Talk:
    roles = ("user", "assistant")

    def __init__(self) -> None:
        self.messages = list[tuple[str, str | None]]()

    def copy(self) -> "Talk":
        return Talk()

    def append_message(self, role: str, text: str | None) -> None:
        self.messages.append((role, text))

    def get_prompt(self) -> str:
        return "".join(f"{role} {text or ''} " for role, text in self.messages)


class Intern(nn.Module):
    """As UniPercept's InternVL is called."""

    num_image_token, conv_template = 4, Talk()

    def __init__(self) -> None:
        super().__init__()
        self.language_model, self.look = llama(), nn.Linear(3, 4 * WIDTH)
        self.seen = list[Tensor]()

    def extract_feature(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        return self.look(pixels.mean((2, 3))).view(1, 4, WIDTH)


def test_unipercept_weighs_its_codes() -> None:
    assert (len(CODES), CODES[0], CODES[25], CODES[26], CODES[50], CODES[51], CODES[76], CODES[100]) == (
        101,
        *("aa", "az", "ca", "cy", "da", "ea", "ey"),
    )
    torch.manual_seed(2)
    tokenizer, model = Words(begin=False), Intern().eval()
    scorer = UniPercept(model, tokenizer)
    quality, beauty = scorer.score(IMAGE, "quality"), scorer.score(IMAGE, "aesthetics")
    assert 0 < quality < 100
    assert quality != beauty
    assert model.seen[0].shape == (1, 3, 448, 448)
    with torch.no_grad():
        model.look.weight.mul_(0)
    assert scorer.score(IMAGE, "quality") != quality  # it looks
    logits = torch.full((400,), -1e4)
    logits[scorer.codes[73]] = 0
    assert expected_value(logits, scorer.codes, list(range(101))) == 73


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("<think>Sharp, 4 of 5.</think><answer>4.25</answer>", 4.25),
        ("<answer>2</answer> no, <answer> 3.50 </answer>", 3.5),
        ("<answer>Score: 4.8 out of 5</answer>", 4.8),
        ("<answer>9.5</answer>", 5.0),
        ("<answer>0.2</answer>", 1.0),
        ("<think>I would say 3.75", 3.75),
        ("<answer>good</answer>", math.nan),
        ("It was taken in 1987.", math.nan),
        ("", math.nan),
    ],
)
def test_ratings_are_parsed(answer: str, rating: float) -> None:
    assert parse_rating(answer) == pytest.approx(rating, nan_ok=True)


def test_visual_quality_r1_is_asked_once_and_greedily() -> None:
    asked = dict[str, Any]()

    class Processor:
        def apply_chat_template(self, talk: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            asked["talk"] = talk
            return "prompt"

        def __call__(self, text: list[str], images: list[Image.Image], return_tensors: str) -> Any:
            asked["size"] = images[0].size
            return transformers.BatchEncoding({"input_ids": torch.tensor([[1, 2, 3]])})

        def batch_decode(self, ids: Tensor, skip_special_tokens: bool) -> list[str]:
            return [f"{ids.shape[1]} new <answer>3.9</answer>"]

    model = llama()
    generate = partial(_made, model, asked)
    scorer = VisualQualityR1(SimpleNamespace(device=torch.device("cpu"), generate=generate), Processor())
    assert scorer.score(IMAGE.resize((1024, 512))) == 3.9
    assert asked["size"] == (512, 256)
    assert asked["do_sample"] is False
    (message,) = asked["talk"]
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"].endswith("only one score in <answer> </answer> tags.")
    assert scorer.answer(IMAGE).startswith("6 new")
    assert asked["size"] == (80, 40)


def _made(model: Any, asked: dict[str, Any], **given: Any) -> Tensor:
    asked.update(given)
    assert given["max_new_tokens"] == 512
    return model.generate(**{**given, "max_new_tokens": 6, "min_new_tokens": 6})


def test_a_model_that_cannot_be_loaded_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> Any:
        raise RuntimeError("no such place\nand more")

    monkeypatch.setattr(VisualQualityR1, "from_pretrained", fail)
    metrics = open_metrics(["psnr", "vq-r1", "vq-r1@crops"])
    assert metrics.names == ["psnr"]
    assert metrics.absent["vq-r1"] == "metric vq-r1: cannot be loaded (no such place)"
    assert metrics.refused == {"vq-r1", "vq-r1@crops"}
