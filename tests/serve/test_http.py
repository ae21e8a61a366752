import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixdec import Latent, get_space
from pixdec.io.images import read_image
from tests.serve.service import picture


def sent(client, path="/v1/upscale", file=None, **fields):
    return client.post(path, files={"image": file or picture()}, data=fields)


def events(client, id):
    with client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        text = "".join(stream.iter_text())
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event")]
    return [(name[7:], json.loads(data[6:])) for name, data in blocks]


def test_form_and_json_give_the_same_bytes(client):
    form = sent(client, seed=3, steps=2)
    json_ = {"image": base64.b64encode(picture()).decode(), "seed": 3, "steps": 2}
    assert form.status_code == 200
    assert form.headers["content-type"] == "image/png"
    assert form.headers["x-content-type-options"] == "nosniff"
    assert form.headers["x-request-id"]
    assert form.content == client.post("/v1/upscale", json=json_).content
    assert sent(client, output_format="webp").content.startswith(b"RIFF")


def test_two_identical_uploads_at_once_give_identical_bytes(client):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: client.post("/v1/upscale", files={"image": picture()}).content, range(2))
    assert first == second and first.startswith(b"\x89PNG")


def test_a_job_tells_its_steps_and_keeps_its_images(client):
    job = sent(client, respond="job", steps=4)
    assert job.status_code == 202
    told = events(client, job.json()["id"])
    names = [name for name, _ in told]
    assert names[0] == "state"
    assert names[-1] == "done"
    record = told[-1][1]
    assert (record["width"], record["height"], record["step"]) == (48, 48, 4)
    for form, mark in (("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8")):
        assert client.get(record["links"]["result"], params={"format": form}).content.startswith(mark)
    assert client.get(record["links"]["first"]).content.startswith(b"\x89PNG")
    assert events(client, record["id"])[-1][0] == "done"  # for one who comes late
    assert client.delete(record["links"]["self"]).status_code == 200
    assert client.get(record["links"]["result"]).status_code == 410


def test_a_latent_is_decoded(client, tmp_path):
    import torch

    latent = Latent(torch.rand(1, 3, 10, 14) * 2 - 1, get_space("rgb"))
    latent.save(tmp_path / "l.safetensors")
    answer = client.post("/v1/decode", files={"latent": (tmp_path / "l.safetensors").read_bytes()}, data={"steps": 1})
    assert answer.status_code == 200, answer.text
    (tmp_path / "o.png").write_bytes(answer.content)
    assert read_image(tmp_path / "o.png").size == (56, 40)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", "x"), ("steps", "0"), ("steps", "5"), ("steps", "1e9"), ("seed", "NaN"), ("strength", "-1"),
     ("scale", "1e99"), ("strange", "1"), ("output_format", "gif"), ("prompt", "a cat"), ("profile", "x"),
     ("deadline", "0")],
)  # fmt: skip
def test_a_wrong_field_is_named(client, field, value):
    answer = sent(client, **{field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_what_only_the_file_shows_to_be_wrong_is_named_too(client):
    answer = sent(client, size="100x150")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "size")


def test_a_profile_that_sets_nothing_of_a_request_is_refused(client):
    answer = client.post("/v1/decode", files={"latent": b"x"}, data={"profile": "creative"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "profile")


def test_json_takes_no_number_for_a_text_nor_a_text_for_a_number(client):
    image = base64.b64encode(picture()).decode()
    for wrong in ({"steps": "4"}, {"seed": 1.5}, {"prompt": 3}, {"image": 5}, {"image": "http://127.0.0.1/x.png"}):
        answer = client.post("/v1/upscale", json={"image": image, **wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(wrong))


def test_what_cannot_be_read_or_is_too_large(client):
    assert sent(client, file=b"no image").status_code == 415
    assert sent(client, file=picture()[:90]).status_code == 422
    assert sent(client, scale="64", file=picture(100, 100)).status_code == 413
    assert client.post("/v1/upscale", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/v1/upscale", content=b"x" * (33 << 20)).status_code in (413, 415)
    assert sent(client, model="other").status_code == 404
    assert client.get("/v1/jobs/none").status_code == 404
    assert client.post("/v1/generate", json={"prompt": "x"}).status_code == 404


def test_the_openapi_document_tells_what_is_taken_and_answered(client):
    made = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/upscale", "/v1/decode", "/v1/generate", "/v1/images/edits", "/v1/images/generations"):
        operation = made[path]["post"]
        assert {"200", "400", "413", "429", "503"} <= operation["responses"].keys()
        for media in operation["requestBody"]["content"].values():
            assert media["example"].keys() <= media["schema"]["properties"].keys()
            assert set(media["schema"].get("required", ())) <= media["example"].keys()
    assert made["/v1/upscale"]["post"]["responses"]["200"]["content"].keys() == {
        "image/png",
        "image/webp",
        "image/jpeg",
    }
