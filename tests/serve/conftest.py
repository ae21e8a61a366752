"""One service for all tests here: a worker process takes seconds to start."""

import httpx2 as httpx
import pytest

from pixdec.serve.engine import Engine
from tests.serve.service import QUICK, served


@pytest.fixture(scope="session")
def engine():
    with Engine(QUICK) as running:
        running.wait_ready(300)
        yield running


@pytest.fixture(scope="session")
def url(engine):
    with served(engine) as found:
        yield found


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, timeout=300) as made:
        yield made
