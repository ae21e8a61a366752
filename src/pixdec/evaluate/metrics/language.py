"""Language models that score an image without a reference, each asked as its authors ask it: DeQA-Score, UniPercept,
VisualQuality-R1. They see 448 to 512 pixels a side, whatever the image has; NAME@crops shows them more.

They are loaded from the hub by transformers when they are named: 14 to 20 GB of weights each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixdec.evaluate.metrics.table import Metric, Shown
from pixdec.io.files import first_line_of
from pixdec.io.quiet import library

DEQA, UNIPERCEPT, VQ_R1 = "zhiyuanyou/DeQA-Score-Mix3", "Thunderbolt215215/UniPercept", "TianheWu/VisualQuality-R1-7B"
DEQA_PROMPT = "USER: How would you rate the quality of this image?\n<|image|>\nASSISTANT: The quality of the image is"
DEQA_LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
IMAGE_TOKEN = -200  # mPLUG-Owl2's, where the image's tokens go
# With its authors' slips ("73-ec", "74-ed"), as the model was trained on it.
UNIPERCEPT_PROMPT = (
    "<image>Rate the {word} score of the image in 0-100. In the output format, numbers are replaced by 2 corresponding "
    "letters, and the mapping relationship is: score 0 to 25: 0-aa, 1-ab, 2-ac, 3-ad, ... , 25-az, \n"
    "score 26 to 50: 26-ca, 27-cb, 28-cc, 29-cd, ..., 50-cy, \n"
    "score 51 to 75: 51-da, 52-db, 53-dc, 54-dd, ..., 75-dy, \n"
    "score 76 to 100: 76-ea, 77-eb, 73-ec, 74-ed, ..., 100-ey. \n"
    "The answer only outputs 2 corresponding letters."
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CODES = [f"a{each}" for each in LETTERS] + [first + each for first in "cde" for each in LETTERS[:25]]  # 0 to 100
VQ_R1_PROMPT = (
    "You are doing the image quality assessment task. Here is the question: What is your overall rating on the quality "
    "of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 representing "
    "very poor quality and 5 representing excellent quality. First output the thinking process in <think> </think> "
    "tags and then output the final answer with only one score in <answer> </answer> tags."
)
VQ_R1_SIDE, VQ_R1_TOKENS = 512, 512


def expected_value(logits: Tensor, ids: Sequence[int], values: Sequence[float]) -> float:
    """The mean of `values` under the softmax of logits (V,) over the tokens `ids`."""
    chosen = logits.float()[list(ids)].softmax(0)
    return float(chosen @ torch.tensor(values, dtype=torch.float32, device=chosen.device))


def normalized(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(1,3,H,W) of an RGB image."""
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32) / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


class DeQA:
    """One forward pass over a question that ends before its answer; the levels' first tokens are weighed.

    model: mPLUG-Owl2 of DeQA-Score; tokenizer: its, which begins texts with a token of its own; processor: its image
    processor, of CLIP.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any):
        self.model, self.processor = model, processor
        before, after = (tokenizer(part)["input_ids"] for part in DEQA_PROMPT.split("<|image|>"))
        begin = [tokenizer.bos_token_id] if after[:1] == [tokenizer.bos_token_id] else []
        self.ids = [*before, IMAGE_TOKEN, *after[len(begin) :]]
        self.levels = [tokenizer(level)["input_ids"][len(begin)] for level in DEQA_LEVELS]

    @classmethod
    def from_pretrained(cls, device: torch.device) -> DeQA:
        transformers = library("transformers", "it", "pipelines")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            DEQA, trust_remote_code=True, torch_dtype=torch.float16, attn_implementation="eager"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEQA, use_fast=False)
        return cls(loaded.to(device).eval(), tokenizer, transformers.CLIPImageProcessor.from_pretrained(DEQA))

    @torch.inference_mode()
    def score(self, image: Image.Image) -> float:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * each) for each in self.processor.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels: Tensor = self.processor(square, return_tensors="pt")["pixel_values"]
        parameter = next(self.model.parameters())
        ids = torch.tensor([self.ids], device=parameter.device)
        logits: Tensor = self.model(ids, images=pixels.to(parameter)).logits[0, -1]
        return expected_value(logits, self.levels, list(DEQA_LEVELS.values()))


class UniPercept:
    """One forward pass of an InternVL chat model; 101 codes of two letters are weighed by the numbers that they are."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.codes: list[int] = [tokenizer.convert_tokens_to_ids(code) for code in CODES]
        self.context: int = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")

    @classmethod
    @cache
    def from_pretrained(cls, device: torch.device) -> UniPercept:
        transformers = library("transformers", "it", "pipelines")
        loaded = transformers.AutoModel.from_pretrained(UNIPERCEPT, trust_remote_code=True, torch_dtype=torch.bfloat16)
        tokenizer = transformers.AutoTokenizer.from_pretrained(UNIPERCEPT, trust_remote_code=True, use_fast=False)
        return cls(loaded.to(device).eval(), tokenizer)

    @torch.inference_mode()
    def score(self, image: Image.Image, word: str) -> float:
        """`word`: "quality" or "aesthetics"."""
        model, parameter = self.model, next(self.model.parameters())
        small = image.resize((448, 448), Image.Resampling.BICUBIC)
        pixels = normalized(small, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).to(parameter)
        talk = model.conv_template.copy()
        talk.append_message(talk.roles[0], UNIPERCEPT_PROMPT.format(word=word))
        talk.append_message(talk.roles[1], None)
        shown = f"<img>{'<IMG_CONTEXT>' * model.num_image_token}</img>"
        inputs = self.tokenizer(talk.get_prompt().replace("<image>", shown, 1), return_tensors="pt").to(pixels.device)
        embeddings: Tensor = model.language_model.get_input_embeddings()(inputs["input_ids"]).clone()
        seen: Tensor = model.extract_feature(pixels)
        embeddings[inputs["input_ids"] == self.context] = seen.flatten(0, -2).to(embeddings)
        out = model.language_model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        return expected_value(out.logits[0, -1], self.codes, [float(value) for value in range(len(CODES))])


class VisualQualityR1:
    """A Qwen2.5-VL that thinks and then writes a number; greedy."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, device: torch.device) -> VisualQualityR1:
        transformers = library("transformers", "it", "pipelines")
        loaded = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(VQ_R1, torch_dtype=torch.bfloat16)
        return cls(loaded.to(device).eval(), transformers.AutoProcessor.from_pretrained(VQ_R1, padding_side="left"))

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> str:
        """What it writes about the image, which it sees at 512 pixels at most."""
        if (longest := max(image.size)) > VQ_R1_SIDE:
            size = (max(1, round(side * VQ_R1_SIDE / longest)) for side in image.size)
            image = image.resize(cast("tuple[int, int]", tuple(size)), Image.Resampling.LANCZOS)
        content = [{"type": "image"}, {"type": "text", "text": VQ_R1_PROMPT}]
        talk = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[talk], images=[image], return_tensors="pt").to(self.model.device)
        made: Tensor = self.model.generate(**inputs, do_sample=False, max_new_tokens=VQ_R1_TOKENS)
        new = made[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0]

    def score(self, image: Image.Image) -> float:
        return parse_rating(self.answer(image))


def parse_rating(text: str) -> float:
    """The first number of the last <answer>, brought into 1 to 5; else the last number of the text, if it is within;
    else NaN."""
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if answers and (number := re.search(r"\d+(?:\.\d+)?", answers[-1])):
        return min(5.0, max(1.0, float(number[0])))
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return numbers[-1] if numbers and 1 <= numbers[-1] <= 5 else math.nan


# Heading, source, and what loads it. Both of UniPercept share one model.
SCORERS: dict[str, tuple[str, str, Callable[[torch.device], Callable[[Image.Image], float]]]] = {
    "deqa": ("DeQA", f"{DEQA}, MIT", lambda device: DeQA.from_pretrained(device).score),
    "unipercept-iaa": (
        "UniPercept IAA",
        f"{UNIPERCEPT}; its licence is its own",
        lambda device: partial(UniPercept.from_pretrained(device).score, word="aesthetics"),
    ),
    "unipercept-iqa": (
        "UniPercept IQA",
        f"{UNIPERCEPT}; its licence is its own",
        lambda device: partial(UniPercept.from_pretrained(device).score, word="quality"),
    ),
    "vq-r1": (
        "VisualQuality-R1",
        f"{VQ_R1}; its licence is its own",
        lambda device: VisualQualityR1.from_pretrained(device).score,
    ),
}


def open_scorer(name: str, device: torch.device) -> Metric:
    """The scorer of that name, loaded.

    Raises:
        ValueError: transformers is missing, or the model cannot be loaded.
    """
    heading, source, load = SCORERS[name]
    try:
        score = load(device)
    except Exception as error:  # of transformers, of the hub, and of code that comes from there
        raise ValueError(f"metric {name}: cannot be loaded ({first_line_of(error)})") from error

    def of_image(shown: Shown) -> float:
        try:
            return score(shown.image)
        except (RuntimeError, KeyError, IndexError, AttributeError, TypeError) as error:  # of code from the hub
            raise ValueError(f"{name}: {first_line_of(error)}") from error

    return Metric(name, heading, "↑", 2, of_image, source=source)
