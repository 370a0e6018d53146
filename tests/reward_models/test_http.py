"""A reward service that is slow, away, wrong or elsewhere: scores in order, or one clear line."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from reward_models import RewardCall, RewardError, calling, checked, combined, load_reward
from reward_models.http import HttpReward, http_reward, pause
from reward_models.interface import ChatPrompt, without_secrets
from tests.service import Reply, Service, honest, lengths

N = 50
PROMPTS = [f"prompt {i}" for i in range(N)]
COMPLETIONS = ["x" * (i * 7 % 31) for i in range(N)]
SCORES = [float(len(text)) for text in COMPLETIONS]
SECRET = "Bearer s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """No waiting between tries; what was asked for is in the list."""
    asked: list[float] = []
    real = time.sleep

    def sleep(seconds: float) -> None:
        if threading.current_thread().name.startswith(("Main", "reward")):
            asked.append(seconds)
        else:  # the service's own
            real(seconds)

    monkeypatch.setattr(calling.time, "sleep", sleep)
    yield asked


def call(url: str, **settings: Any) -> RewardCall:
    told: list[str] = []
    given: dict[str, Any] = {"batch_size": 8, "retries": 2} | settings
    reward = http_reward(url, warn=told.append, **given)
    return replace(reward, label="reward.source")


def failure(answer: Any, **settings: Any) -> tuple[str, int]:
    """The one line that a service's answer ends in, and how often it was asked."""
    with Service(answer) as service, pytest.raises(RewardError) as error:
        call(service.url, **settings)(PROMPTS[:4], COMPLETIONS[:4])
    assert "\n" not in str(error.value)
    return str(error.value), len(service.requests)


def once(reply: Reply) -> Any:
    """A service that does this with its first request, and then answers."""
    return lambda number, body: reply if number == 0 else honest(number, body)


# --- What is sent, and in what order it comes back ---------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_scores_are_in_order_whatever_is_answered_first(concurrency: int) -> None:
    def later_ones_first(number: int, body: dict[str, Any]) -> Reply:
        return Reply({"scores": lengths(body)}, seconds=0.02 * (7 - number % 7))

    with Service(later_ones_first) as service:
        reward = call(service.url, concurrency=concurrency)
        assert reward(PROMPTS, COMPLETIONS) == SCORES
        assert reward(PROMPTS, COMPLETIONS) == SCORES
        assert len(service.requests) == 2 * 7  # 50 in batches of 8
        assert service.most <= concurrency
        assert concurrency == 1 or service.most > 1
        sent = sorted(p for body in service.requests[:7] for p in body["prompts"])
        assert sent == sorted(PROMPTS)
        assert all(set(body) == {"prompts", "completions"} for body in service.requests)
        assert reward([], []) == []


@pytest.mark.parametrize("form", [lambda s: {"scores": s}, lambda s: {"rewards": s}, lambda s: s])
def test_the_forms_of_an_answer(form: Any) -> None:
    with Service(lambda number, body: Reply(form(lengths(body)))) as service:
        assert call(service.url)(PROMPTS, COMPLETIONS) == SCORES


def test_columns_and_messages_that_are_asked_for() -> None:
    prompts: list[str] = [ChatPrompt("user: hi", [{"role": "user", "content": "hi"}]), "plain"]
    with Service() as service:
        reward = load_reward(service.url, arguments={"columns": ["answer"]})
        assert reward.needed_columns() == {"answer"}
        assert reward(prompts, ["a", "bb"], answer=[1, 2], other=[3, 4]) == [1.0, 2.0]
    [body] = service.requests
    assert body == {
        "prompts": ["user: hi", "plain"],
        "messages": [[{"role": "user", "content": "hi"}], []],
        "completions": ["a", "bb"],
        "answer": [1, 2],
    }


def test_strange_texts_arrive_as_they_are() -> None:
    texts = ["", "\0\x1b[0m", "\ud800", "🙂" * 10, "x" * 300_000, "\u202eabc", '"\\\n']
    with Service() as service:
        assert call(service.url, batch_size=2)(texts, texts) == [float(len(t)) for t in texts]
        arrived = [text for body in service.requests for text in body["completions"]]
    assert sorted(arrived) == sorted(texts)


# --- What is asked again ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        Reply(drop=True),
        Reply({"scores": [1.0] * 4}, drop="middle"),
        Reply({"error": "loading"}, status=503),
        Reply("no", status=500),
        Reply("slow down", status=429),
        Reply(b"<html>the gateway is busy</html>"),
        Reply(b""),
        Reply(b'{"scores": [1.0, 2.'),
        Reply(b"[" * 100_000),
        Reply(b"\xff\xfe\x00garbage"),
        Reply([1.0] * 4, headers={"Content-Encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status} {str(reply.body)[:12]} {reply.drop}",
)
def test_what_may_pass_is_asked_again_and_nothing_else(reply: Reply, waits: list[float]) -> None:
    with Service(once(reply)) as service:
        assert call(service.url, concurrency=3)(PROMPTS, COMPLETIONS) == SCORES
        assert len(service.requests) == 7 + 1
    assert len(waits) == 1 and 1.0 <= waits[0] <= 1.5
    message, asked = failure(lambda number, body: reply)
    assert asked == 3 and message.startswith("reward.source: failed 3 times, at last with ")
    assert message.endswith("; see that what it calls answers")


def test_a_service_that_hangs_is_asked_again_in_time() -> None:
    with Service(once(Reply([0.0], seconds=30.0))) as service:
        began = time.monotonic()
        reward = call(service.url, timeout=0.3, concurrency=2)
        assert reward(PROMPTS, COMPLETIONS) == SCORES
        assert time.monotonic() - began < 15 and len(service.requests) == 7 + 1
    message, asked = failure(lambda number, body: Reply(seconds=2.0), timeout=0.1, retries=1)
    assert asked == 2 and "failed 2 times, at last with TimeoutError: no answer in 0.1 s" in message


def test_a_service_that_is_away_and_comes_back(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    service.close()
    with pytest.raises(RewardError, match="at last with ConnectionError: no connection") as error:
        call(service.url, concurrency=1)(PROMPTS, COMPLETIONS)
    assert "\n" not in str(error.value)
    assert len(waits) == 2
    told: list[str] = []
    back: list[Service] = []
    starting = threading.Lock()

    def sleep(seconds: float) -> None:
        with starting:
            back.extend([] if back else [Service(port=service.port)])

    monkeypatch.setattr(calling.time, "sleep", sleep)
    reward = replace(call(service.url, concurrency=4), warn=told.append)
    assert reward(PROMPTS, COMPLETIONS) == SCORES
    back[0].close()
    assert len(told) == 1 and "try 2 of 3" in told[0]  # four requests failed, and it is said once


def test_the_wait_doubles_and_is_never_shorter_than_asked_for(waits: list[float]) -> None:
    spread = {pause(3, ConnectionError()) for _ in range(50)}
    assert len(spread) > 1 and min(spread) >= 4.0 and max(spread) <= 6.0
    assert pause(500, ConnectionError()) <= 90.0
    date = formatdate(time.time() + 120, usegmt=True)
    for header, least, most in (("7", 7.0, 7.0), (date, 110.0, 121.0), ("soon", 1.0, 1.5),
                                ("99999", 600.0, 600.0), ("-5", 1.0, 1.5)):  # fmt: skip
        waits.clear()
        with Service(once(Reply(status=429, headers={"Retry-After": header}))) as service:
            assert call(service.url)(PROMPTS[:2], COMPLETIONS[:2]) == SCORES[:2]
        assert len(waits) == 1 and least <= waits[0] <= most, header


# --- What is not --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply([1.0, 2.0, 3.0]), "returned 3 scores for 4 completions"),
        (Reply([1.0] * 5), "returned 5 scores for 4 completions"),
        (Reply(b"[1.0, NaN, 2.0, 3.0]"), "scored completion 1"),
        (Reply(b"[1.0, 1e999, 2.0, 3.0]"), "scored completion 1"),
        (Reply([1.0, "2.0", 2.0, 3.0]), "scored completion 1"),
        (Reply([1.0, None, 2.0, 3.0]), "scored completion 1 ('xxxxxxx') as None, so no reward"),
        (Reply({"score": [1.0] * 4}), "cannot tell the scores in its answer"),
        (Reply({"scores": [1.0] * 4, "rewards": [2.0] * 4}), "cannot tell the scores"),
        (Reply({"scores": 1.0}), "cannot tell the scores"),
        (Reply(3.0), 'answer {"scores": […]} with one number for each completion'),
        (Reply(None), "cannot tell the scores in its answer (null)"),
        (Reply("who?", status=401), "answered 401 Unauthorized (\"who?\"); name the environment"),
        (Reply("", status=404), "see that the address is right, and takes POST"),
        (Reply("", status=307, headers={"Location": "https://u:pw@other/new?key=1"}),
         "it points to https://other/new: name that address, if you trust it"),
        (Reply("", status=302), "it points to somewhere else"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_is_not_asked_again(
    reply: Reply, expected: str, waits: list[float]
) -> None:
    message, asked = failure(lambda number, body: reply)
    assert expected in message and asked == 1 and waits == []
    assert "pw" not in message and "key=1" not in message


def test_in_a_list_of_rewards_it_is_asked_again_alone(waits: list[float]) -> None:
    """What is around it does not start all over when its own tries are used up."""
    asked: list[int] = []

    def other(prompts: list[str], completions: list[str]) -> list[float]:
        asked.append(len(completions))
        return [1.0] * len(completions)

    with Service(once(Reply(status=503))) as service:
        parts = [
            combined.Part("other", checked(other)),
            combined.Part("service", call(service.url), weight=0.5),
        ]
        both = replace(checked(combined.combined(parts)), retries=2)
        assert both(PROMPTS, COMPLETIONS) == [1.0 + 0.5 * score for score in SCORES]
        assert len(service.requests) == 7 + 1 and asked == [N]
        service.answer = lambda number, body: Reply(status=503)
        service.requests.clear()
        with pytest.raises(RewardError, match="^reward.source: failed 3 times, at last with Serv"):
            both(PROMPTS[:2], COMPLETIONS[:2])
        assert len(service.requests) == 3 and asked == [N, 2]


def test_texts_that_are_refused_are_named() -> None:
    def refuses(number: int, body: dict[str, Any]) -> Reply:
        if "prompt 18" in body["prompts"]:
            return Reply({"detail": "too odd"}, status=422)
        return Reply(lengths(body))

    with Service(refuses) as service, pytest.raises(RewardError) as error:
        call(service.url)(PROMPTS, COMPLETIONS)
    assert "422" in str(error.value) and "too odd" in str(error.value)
    assert "on completion 18 ('xx" in str(error.value)


def test_an_answer_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_models.http._LONGEST", 2**20)
    body = b"[" + b"1.0, " * 2**20 + b"1.0]"
    message, asked = failure(lambda number, received: Reply(body))
    assert "its answer is longer than 1 MiB" in message and asked == 1


# --- Where it goes, and what goes with it ------------------------------------------------------


def test_the_header_goes_out_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_HEADER", f"Authorization: {SECRET}")
    with Service() as service:
        reward = call(service.url, header_env="MY_HEADER")
        assert reward(PROMPTS, COMPLETIONS) == SCORES
        assert all(headers["Authorization"] == SECRET for headers in service.headers)
    assert "s3cr3t" not in repr(reward) + repr(reward.function)
    for reply in (Reply(f"not {SECRET}!", status=401), Reply(f"no {SECRET}", status=500),
                  Reply({"you": SECRET}), Reply(b"s3cr3t-t0ken")):  # fmt: skip
        message, _ = failure(lambda number, body, reply=reply: reply, header_env="MY_HEADER")
        assert "s3cr3t" not in message and ("…" in message or "[…]" in message)
    # Redirects would take it elsewhere.
    with Service() as other:
        reply = Reply("", status=308, headers={"Location": other.url})
        failure(lambda number, body: reply, header_env="MY_HEADER")
        assert other.requests == []
    assert "s3cr3t" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("value", ["s3cr3t", "A b: s3cr3t", "A: s3\ncr3t", "A: ", "A: s3cr3té"])
def test_a_header_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_HEADER", value)
    with pytest.raises(RewardError, match="MY_HEADER holds no header; write its name") as error:
        HttpReward("http://127.0.0.1/", header_env="MY_HEADER")
    assert "s3" not in str(error.value)
    with pytest.raises(RewardError, match="there is no environment variable OTHER"):
        HttpReward("http://127.0.0.1/", header_env="OTHER")


def test_a_header_in_the_clear_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HEADER", f"Authorization: {SECRET}")
    told: list[str] = []
    for url in ("http://example.org/", "https://example.org/", "http://localhost/", "http://[::1]"):
        HttpReward(url, header_env="MY_HEADER", warn=told.append)
    assert told == ["reward http://example.org/: MY_HEADER is sent unencrypted; use https"]


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Service() as proxy, Service() as service:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        assert call(service.url)(PROMPTS, COMPLETIONS) == SCORES
        assert proxy.requests == []
        # Another host does, as everywhere on such a machine.
        assert call("http://elsewhere.invalid/score")(PROMPTS[:2], COMPLETIONS[:2]) == SCORES[:2]
        assert len(proxy.requests) == 1


def test_ipv6() -> None:
    try:
        service = Service(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with service:
        assert call(service.url)(PROMPTS, COMPLETIONS) == SCORES


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its own authority's certificate for 127.0.0.1, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "cert"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return both


def test_certificates_are_looked_at(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with Service(certificate=certificate) as service:
        with pytest.raises(RewardError, match="certificate is not trusted.*SSL_CERT_FILE"):
            call(service.url)(PROMPTS, COMPLETIONS)
        assert waits == [] and service.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "cert"))
        assert call(service.url)(PROMPTS, COMPLETIONS) == SCORES
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "gone"))
        with pytest.raises(RewardError, match="SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"):
            call(service.url)


# --- By name ------------------------------------------------------------------------------------


def test_by_name() -> None:
    with Service() as service:
        reward = load_reward(service.url, batch_size=8)
        assert reward(PROMPTS, COMPLETIONS) == SCORES
        assert reward.label == f"reward {service.url}" and reward.concurrency == 4


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("http://", {}, "names no host"),
        ("http://a:b:c/", {}, "is no address"),
        ("http://a:99999/", {}, "no port 99999"),
        ("http://a/score?key=1", {}, "http://a/score: the address has a query"),
        ("https://me:pw@host/x", {}, "reward https://host/x: the address holds a user"),
        ("http://h/x", {"format": "pair"}, "is a service, for which format means nothing"),
        ("http://h/x", {"arguments": {"url": "x"}}, "has no argument 'url'; there are"),
        ("http://h/x", {"arguments": {"columns": "a"}}, "columns is 'a'; expected a list of nam"),
        ("http://h/x", {"arguments": {"concurrency": 0}}, "expected a whole number above 0"),
    ],
)
def test_names_and_settings_that_do_not_go(spec: str, options: Any, expected: str) -> None:
    with pytest.raises(RewardError) as error:
        load_reward(spec, **options)
    assert expected in str(error.value) and "pw" not in str(error.value)


def test_what_is_shown_of_an_address() -> None:
    assert without_secrets("https://u:p@host:1/a/b?c=@d#e") == "https://host:1/a/b"
    assert without_secrets("http://host?q=http://x@y") == "http://host"
    assert without_secrets("a/b@c?d") == "a/b@c?d"  # no address
