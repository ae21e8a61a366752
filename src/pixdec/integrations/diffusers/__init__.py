"""Stop a diffusers pipeline early and decode its latent: any pipeline that denoises in a latent space known here.

    from pixdec.integrations.diffusers import attach, capture, generate

    images = generate(pipe, decoder, prompt="…", num_inference_steps=28, stop_after=24)
    latent = capture(pipe, prompt="…", num_inference_steps=28, stop_after=24)  # a `Latent`, for later
    with attach(pipe, decoder, stop_after=24):
        images = pipe("…", num_inference_steps=28).images

Nothing here knows a pipeline by its name: the space is read off the VAE (`spaces`), the noise level off the scheduler
(`noise`), the latent out of the pipeline's own loop (`loop`).
"""

from importlib.util import find_spec

if find_spec("diffusers") is None:
    raise ImportError("pixdec.integrations.diffusers needs diffusers: pip install 'pixdec[pipelines]'")

from pixdec.integrations.diffusers.attachment import Attachment, attach
from pixdec.integrations.diffusers.calls import capture, generate
from pixdec.integrations.diffusers.stand_in import DecoderOptions, DecoderVAE
from pixdec.integrations.stops import Stop

__all__ = ["Attachment", "DecoderOptions", "DecoderVAE", "Stop", "attach", "capture", "generate"]
