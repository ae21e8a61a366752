"""A source makes the images and the embeddings that training reads."""

import sys
from pathlib import Path

import torch
from small import diffusers

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

import tiny

from pixdec.l2p.images import ImageSource, PipelineImages
from pixdec.l2p.sources import get_source


def test_a_z_image_pipeline_is_a_source_of_images():
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae_flux1(),
        text_encoder=tiny.qwen3(False),
        tokenizer=tiny.tokenizer(16),
        transformer=tiny.z_image(),
    )
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 1, "guidance_scale": 0.0, "height": 64, "width": 64}
    source: ImageSource = PipelineImages(pipe, get_source("z-image"), "tiny", settings)
    one, again, other = (source.images(["a red fox"], [seed])[0] for seed in (1, 1, 2))
    assert one.size == (64, 64)
    assert one.tobytes() == again.tobytes() != other.tobytes()
    texts = source.embed(["a red fox", "a"])
    assert [text.shape[1] for text in texts] == [tiny.TEXT] * 2
    assert len(texts[0]) > len(texts[1])
    assert all(isinstance(text, torch.Tensor) for text in texts)
