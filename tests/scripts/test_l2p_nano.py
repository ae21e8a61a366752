"""Drawn scenes are read again from their pixels, and what is held out is never trained on."""

from itertools import islice

import pytest
from PIL import Image

pytest.importorskip("skimage", reason="scenes are read with scikit-image")
pytest.importorskip("diffusers", reason="the nano source is a diffusers class")

from pixdec.text.words import Words
from scripts.l2p_nano.scenes import SIDE, WORDS, all_scenes, drawn_scenes, held_out, judge, render
from scripts.l2p_nano.source import sheet_scenes, tiled


def test_rules_find_what_a_caption_says_and_nothing_else():
    scenes = list(islice(drawn_scenes(5), 60))
    assert {scene.kind for scene in scenes} == {"place", "count", "pair", "letter"}
    for number, scene in enumerate(scenes):
        image = render(scene, number)
        verdict = judge(scene, image)
        assert all(verdict.values()), (scene, verdict)
        wrong = judge(scenes[number - 1], image)
        assert scenes[number - 1] == scene or not wrong["all"]
    assert not judge(scenes[0], Image.new("RGB", (SIDE, SIDE)))["all"]


def test_a_sheet_is_read_again():
    pytest.importorskip("matplotlib", reason="curves are drawn with it")
    from scripts.l2p_nano.curves import COLUMNS, ROWS, accuracy

    scenes = sheet_scenes(ROWS * COLUMNS)
    images = [render(scene, 3) for scene in scenes]
    images[5:8] = [render(scenes[0], 3)] * 3
    assert accuracy(tiled(images, COLUMNS)) == (ROWS * COLUMNS - 3) / (ROWS * COLUMNS)


def test_held_out_captions_are_a_tenth_and_known_words():
    every = [scene for scenes in all_scenes().values() for scene in scenes]
    held = [scene for scene in every if held_out(scene)]
    assert len({scene.caption for scene in every}) == len(every)
    assert 0.08 < len(held) / len(every) < 0.12
    assert not any(held_out(scene) for scene in islice(drawn_scenes(1), 300))
    Words(WORDS, 4)([scene.caption for scene in every])
