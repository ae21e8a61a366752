import pytest

from pixdec.serve.client import Client, ServiceFailed
from tests.serve.service import picture


def test_the_client_does_what_the_service_offers(url, tmp_path):
    client, file = Client(url), tmp_path / "i.png"
    file.write_bytes(picture())
    made = client.upscale(file, seed=2)
    job = client.upscale(picture(), seed=2, respond="job")
    assert [event for event, _ in client.events(job["id"])][-1] == "done"
    assert client.result(job["id"]) == made
    model = client.models()[0]
    assert model["id"] == "pixdec-nano" and model["megapixels_per_second"] > 0  # before the first image
    assert client.cancel(job["id"])["state"] == "done"


def test_what_is_refused_says_which_field(url):
    with pytest.raises(ServiceFailed, match="steps") as refused:
        Client(url).upscale(picture(), steps=0)
    assert (refused.value.status, refused.value.param) == (400, "steps")
