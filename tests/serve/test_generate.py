"""A pipeline of small random components, and the bundled decoder behind it."""

import openai
import pytest

from tests.serve.service import QUICK, served

pytest.importorskip("diffusers")

from pixdec.serve.client import Client, ServiceFailed
from pixdec.serve.engine import Engine
from pixdec.serve.settings import PipelineSettings
from tests.cli.klein_pipeline import klein

__all__ = ["klein"]


@pytest.fixture(scope="module")
def generating(klein):
    settings = {"pipelines": {"klein": PipelineSettings(source=str(klein), steps=2)}}
    with Engine(QUICK.model_copy(update=settings)) as engine:
        engine.wait_ready(300)
        with served(engine) as url:
            yield url


def test_a_prompt_becomes_an_image(generating):
    client, size = Client(generating), {"width": 64, "height": 32}
    made = client.generate("a red fox", seed=1, **size)
    assert made.startswith(b"\x89PNG")
    assert client.generate("a red fox", seed=1, **size) == made
    job = client.generate("a red fox", seed=1, stop_after=1, respond="job", **size)
    event, record = list(client.events(job["id"]))[-1]
    assert (event, record["width"], record["height"]) == ("done", 256, 128)
    assert record["seconds"].keys() >= {"generate", "decode"}
    assert client.result(job["id"]) != made


def test_openai_generations(generating):
    official = openai.OpenAI(base_url=f"{generating}/v1", api_key="none", max_retries=0)
    made = official.images.generate(prompt="a red fox", model="klein", size="256x128", extra_body={"seed": 1})
    assert made.size == "256x128"


def test_what_the_pipeline_refuses_is_said(generating):
    with pytest.raises(ServiceFailed, match="width") as refused:
        Client(generating).generate("a fox", width=65, height=32)
    assert refused.value.status == 422
    with pytest.raises(ServiceFailed, match="pipeline failed"):
        Client(generating).generate("a boat", width=64, height=32)
