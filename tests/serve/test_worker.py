"""What a worker process does, in this one: `said` is what it tells the engine."""

import pytest
import torch

from pixdec.inference.engine import MemoryExhaustedError
from pixdec.latents import Latent
from pixdec.serve.jobs import Work
from pixdec.serve.settings import ModelSettings, ServeSettings
from pixdec.serve.worker import Worker
from tests.serve.service import work

MODEL = "pixdec-nano"


def worker_with(**settings):
    made = Worker(None, ServeSettings(**settings), "cpu")
    made.said = []
    made.send = lambda *message: made.said.append(message)
    made.wanted = lambda id: True
    return made


@pytest.fixture(scope="module")
def worker():
    with torch.no_grad():
        yield worker_with()


def do(worker, *works):
    """What came of works, a batch: an image's bytes or a code."""
    worker.said.clear()
    worker.batch([(str(i), each, False) for i, each in enumerate(works)])
    ends = {said[1]: said[2] for said in worker.said if said[0] in ("done", "failed")}
    return [getattr(ends[str(i)], "data", None) or ends[str(i)].code for i in range(len(works))]


def test_a_batch_that_does_not_fit_is_decoded_in_smaller_ones(worker, monkeypatch):
    works = [work(seed) for seed in range(4)]
    alone = [do(worker, each)[0] for each in works]
    decoder, sizes = worker.model(MODEL).decoder, []
    stream, most = decoder.stream, 2

    def short(joined, prompts, **arguments):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise MemoryExhaustedError("no memory left")
        return stream(joined, prompts, **arguments)

    monkeypatch.setattr(decoder, "stream", short)
    assert do(worker, *works) == alone
    assert sizes == [4, 2, 2]
    most = 0
    assert do(worker, *works[:2]) == ["out_of_memory"] * 2
    monkeypatch.undo()
    assert do(worker, *works) == alone


def test_the_model_that_was_used_least_recently_goes():
    one = worker_with(models={MODEL: ModelSettings(source=MODEL)}).model(MODEL).size
    names = ("a", "b", "c")
    models = {name: ModelSettings(source=MODEL) for name in names}
    worker = worker_with(models=models, model_memory=f"{2.5 * one / 1e6:.3f}MB")
    first = do(worker, Work("upscale", "a", work(0).data, (12, 12), 2304))
    for name in ("b", "a", "c"):
        worker.model(name)
    assert list(worker.models) == ["a", "c"]
    assert [said[1] for said in worker.said if said[0] == "models"][-1] == ["a", "c"]
    assert do(worker, Work("upscale", "b", work(0).data, (12, 12), 2304)) == first
    assert list(worker.models) == ["c", "b"]


def test_a_latent_decides_not_which_vae_is_loaded(worker, tmp_path):
    path = tmp_path / "x.safetensors"
    Latent(torch.zeros(1, 16, 4, 4), "flux1", statistics=False, encoder="someone/vae").save(path)
    assert do(worker, Work("decode", MODEL, path.read_bytes(), (1, 16, 4, 4), 0, options={})) == ["unprocessable"]
    assert "someone/vae; this service has no VAE" in worker.said[-1][2].message
