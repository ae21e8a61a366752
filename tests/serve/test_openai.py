"""With the official client."""

import base64
import threading

import openai
import pytest

from pixdec.serve.jobs import ServiceError
from tests.serve.service import arrived, picture, work


@pytest.fixture
def official(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def edited(client, **fields):
    return client.images.edit(image=("i.png", picture(), "image/png"), prompt="", **fields)


def test_an_edit_without_a_mask_is_an_upscale(official, client):
    made = edited(official, model="pixdec-nano", n=2, size="48x48", user="me", extra_body={"seed": 5})
    own = [
        client.post("/v1/upscale", files={"image": picture()}, data={"seed": 5 + i, "size": "48x48"}) for i in (0, 1)
    ]
    assert [base64.b64decode(image.b64_json) for image in made.data] == [answer.content for answer in own]
    assert made.size == "48x48"


def test_an_edit_is_streamed(official):
    told = list(edited(official, stream=True, partial_images=2, output_format="webp", extra_body={"steps": 4}))
    assert [event.type for event in told] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert all(base64.b64decode(event.b64_json).startswith(b"RIFF") for event in told)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 5),
        ("size", "10x48000"),
        ("size", "huge"),
        ("background", "transparent"),
        ("quality", "high"),
        ("response_format", "url"),
        ("mask", ("m.png", picture(), "image/png")),
        ("input_fidelity", "high"),
        ("partial_images", 1),
        ("prompt", "a cat"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(official, field, value):
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError, openai.APIStatusError)) as refused:
        official.images.edit(**{"image": ("i.png", picture(), "image/png"), "prompt": "", field: value})
    assert refused.value.status_code in (400, 413)
    assert refused.value.param in (field, "image")


def test_generations_need_a_pipeline(official):
    with pytest.raises(openai.NotFoundError):
        official.images.generate(prompt="a cat")


def test_the_client_times_out_and_its_work_stops(official, engine, monkeypatch):
    monkeypatch.setattr(engine, "take", lambda worker: ([], None))  # nothing is begun
    before, timeout = set(engine.jobs), 0.5
    while not set(engine.jobs) - before:  # on a busy machine it may go before it was heard
        with pytest.raises(openai.APITimeoutError):
            edited(official.with_options(timeout=timeout))
        timeout *= 2
    with pytest.raises(ServiceError, match="cancelled"):
        arrived(engine, before).wait(120)


def test_a_full_queue_is_429_and_retries_succeed(engine, official, monkeypatch):
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"queue": 1}))
    with monkeypatch.context() as held:
        held.setattr(engine, "take", lambda worker: ([], None))  # nothing is begun
        engine.submit(work(0))
        with pytest.raises(openai.RateLimitError) as refused:
            edited(official)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        threading.Timer(0.2, lambda: (held.undo(), engine.workers[0].wake())).start()
        assert edited(official.with_options(max_retries=8)).data
