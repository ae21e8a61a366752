"""Each fault of an endpoint, against a stub of one: what is tried again, what is not, and what is said."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from judge_stub import Reply, Stub, picture, said
from PIL import Image

from pixdec.evaluate.judge.endpoint import Answer, Endpoint, FakeJudge

IMAGES = [picture(0), picture(1)]
BUSY: Reply = (503, {}, b"busy")


def ask(stub: Stub, waits: list[float] | None = None, **settings: Any) -> Answer:
    waits = [] if waits is None else waits
    endpoint = Endpoint(stub.url, "m", **{"key": "secret-key", "timeout": 5.0, **settings})
    return endpoint.ask("Which?", IMAGES, lambda seconds: waits.append(seconds) or False)


def test_what_is_sent(stub: Stub) -> None:
    answer = ask(stub, body={"max_tokens": None, "max_completion_tokens": 7})
    assert answer == Answer("VERDICT: A\nIt is sharper.", model="stub-1", tokens=(1000, 20))
    call = stub.calls[0]
    assert (call["model"], call["temperature"], call["max_completion_tokens"]) == ("m", 0, 7)
    assert not {"max_tokens", "response_format", "structured"} & set(call)
    content = call["messages"][0]["content"]
    assert [part.get("text") for part in content] == ["Which?", "Image A", None, "Image B", None]
    for image, part in zip(IMAGES, content[2::2], strict=True):  # without loss
        sent = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
        assert np.array_equal(np.asarray(sent), np.asarray(image))
    assert stub.headers[0]["Authorization"] == "Bearer secret-key"


def test_the_key_is_nowhere_but_in_the_header(stub: Stub) -> None:
    stub.reply = lambda _: (401, {}, b'{"error": {"message": "wrong key secret-key"}}')
    endpoint = Endpoint(stub.url, "m", "secret-key")
    answer = endpoint.ask("Which?", IMAGES, lambda _: False)
    assert "secret-key" not in f"{endpoint} {endpoint.parameters} {answer}"


def test_structured_output_is_one_call_even_when_refused(stub: Stub) -> None:
    stub.reply = lambda _: (400, {}, b'{"error": {"message": "response_format is not supported"}}')
    answer = ask(stub, structured=True)
    assert stub.calls[0]["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B"]
    assert (answer.text, answer.tries, len(stub.calls), answer.hopeless) == (None, 1, 1, False)
    assert "response_format is not supported" in str(answer.error)
    assert "without it" in str(answer.error)


@pytest.mark.parametrize("after", ["7", "date"])
def test_retry_after_is_obeyed(stub: Stub, after: str) -> None:
    when = email.utils.formatdate(time.time() + 7, usegmt=True) if after == "date" else after
    stub.reply = lambda count: (429, {"Retry-After": when}, b"{}") if count < 3 else said("VERDICT: B")
    waits = list[float]()
    answer = ask(stub, waits)
    assert (answer.text, answer.tries, answer.unknown) == ("VERDICT: B", 3, 0)
    assert waits == [pytest.approx(7, abs=1.5)] * 2


def test_a_retry_after_of_hours_is_a_failure(stub: Stub) -> None:
    stub.reply = lambda _: (429, {"Retry-After": "7200"}, b"{}")
    waits = list[float]()
    answer = ask(stub, waits)
    assert (waits, answer.tries, answer.text) == ([], 1, None)
    assert "7200 s" in str(answer.error)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_tried_again_with_growing_waits(stub: Stub, status: int) -> None:
    stub.reply = lambda _: (status, {}, b"<html>busy</html>")
    waits = list[float]()
    answer = ask(stub, waits)
    assert (answer.text, answer.tries, len(stub.calls), answer.hopeless) == (None, 5, 5, False)
    assert f"HTTP {status}" in str(answer.error)
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits, 1))
    assert len(waits) == 4


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422])
def test_not_tried_again(stub: Stub, status: int) -> None:
    stub.reply = lambda _: (status, {"Location": f"{stub.url}/other"}, b'{"error": "no"}')
    answer = ask(stub)
    assert (answer.text, answer.tries, len(stub.calls)) == (None, 1, 1)
    assert answer.hopeless == (status not in (400, 413, 422))
    assert f"HTTP {status}" in str(answer.error)


def test_a_stop_ends_the_waiting(stub: Stub) -> None:
    stub.reply = lambda _: BUSY
    answer = Endpoint(stub.url, "m").ask("Which?", IMAGES, lambda _: True)
    assert (answer.text, len(stub.calls)) == (None, 1)


def test_a_hang_is_tried_again_and_may_have_cost(stub: Stub) -> None:
    stub.reply = lambda count: None if count == 1 else said("VERDICT: A")
    answer = ask(stub, timeout=0.3)
    assert (answer.text, answer.tries, answer.unknown) == ("VERDICT: A", 2, 1)


def test_hangs_to_the_end(stub: Stub) -> None:
    stub.reply = lambda _: None
    answer = ask(stub, timeout=0.1, tries=2)
    assert (answer.text, answer.tries, answer.unknown) == (None, 2, 2)
    assert "within 0.1 s" in str(answer.error)


def test_an_answer_that_drips_is_late(stub: Stub) -> None:
    dripping = said("VERDICT: A")
    assert dripping is not None
    stub.reply = lambda _: (200, {"X-Slow": "1"}, dripping[2])
    answer = ask(stub, timeout=0.2, tries=1)
    assert (answer.text, answer.unknown) == (None, 1)
    assert "within 0.2 s" in str(answer.error)


def test_an_answer_cut_by_the_connection_is_tried_again(stub: Stub) -> None:
    whole = said("VERDICT: A")
    assert whole is not None
    cut: Reply = (200, {"Content-Length": str(len(whole[2]))}, whole[2][:40])
    stub.reply = lambda count: cut if count == 1 else whole
    assert ask(stub).tries == 2


def test_an_endpoint_that_is_down(stub: Stub) -> None:
    waits = list[float]()
    answer = Endpoint("http://127.0.0.1:1/v1", "m").ask("Which?", IMAGES, lambda s: waits.append(s) or False)
    assert (answer.text, answer.tries, answer.unknown, len(waits)) == (None, 5, 0, 4)
    assert "no connection" in str(answer.error)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"choices": [{"message": {"cont', "not JSON"),
        (b"<!doctype html><title>Sign in</title>", "HTML"),
        (b'{"error": {"message": "overloaded"}}', "overloaded"),
        (b'{"choices": []}', "choices"),
        (b"[]", "choices"),
        (b'"VERDICT: A"', "choices"),
        (b'{"choices": [{"message": {"content": 5}}]}', "choices"),
        (b"", "not JSON"),
    ],
)
def test_a_200_without_an_answer_is_a_failure_and_one_call(stub: Stub, body: bytes, word: str) -> None:
    stub.reply = lambda _: (200, {}, body)
    answer = ask(stub)
    assert (answer.text, len(stub.calls)) == (None, 1)
    assert word in str(answer.error)


def test_refusals_and_empty_answers_say_why(stub: Stub) -> None:
    replies = [
        said(None, message={"refusal": "I cannot compare people."}),
        said("", choices=[{"message": {"content": ""}, "finish_reason": "length"}]),
        said(None, choices=[{"message": {"content": None}, "finish_reason": "content_filter"}]),
    ]
    stub.reply = lambda count: replies[count - 1]
    for word in ("I cannot compare people.", "max_tokens", "content_filter"):
        answer = ask(stub)
        assert (answer.text, answer.tokens) == (None, (1000, 20))  # paid for
        assert word in str(answer.error)


def test_content_in_parts_and_no_word_about_tokens(stub: Stub) -> None:
    stub.reply = lambda _: said(
        "", choices=[{"message": {"content": [{"text": "VERDICT"}, {"text": ": A"}]}}], usage=None
    )
    assert ask(stub) == Answer("VERDICT: A", model="stub-1", tokens=None)


def test_addresses(stub: Stub) -> None:
    assert ask(stub).text
    assert Endpoint(stub.url + "/chat/completions?version=1", "m").ask("", IMAGES, lambda _: False).text
    for url in ("file:///etc/passwd", "localhost:8000", ""):
        with pytest.raises(ValueError, match="http://"):
            Endpoint(url, "m")


def test_a_key_that_no_header_takes_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="line break") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", "secret-key\nmore")
    assert "secret" not in str(caught.value)


def test_the_fake_judge_prefers_the_richer_spectrum() -> None:
    soft = IMAGES[0].resize((12, 8)).resize(IMAGES[0].size)
    for seed in range(5):
        judge = FakeJudge(seed)
        assert str(judge.ask("", [IMAGES[0], soft], lambda _: False).text).startswith("VERDICT: A")
        assert str(judge.ask("", [soft, IMAGES[0]], lambda _: False).text).startswith("VERDICT: B")
    verdicts = {str(FakeJudge(seed).ask("", [soft, soft], lambda _: False).text)[:10] for seed in range(20)}
    assert verdicts == {"VERDICT: A", "VERDICT: B"}


def test_an_answer_is_plain(stub: Stub) -> None:
    stub.reply = lambda _: said("VERDICT: A \ud800\u2028")
    json.dumps(ask(stub).text)
