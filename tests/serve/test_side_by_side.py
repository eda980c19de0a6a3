"""Several questions at a time: as many as may run side by side; the next ones wait, and a client that leaves takes only
its own question along."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("starlette")

from tests.serve.over_http import BODY, Policy, Reply, connect, get, post, serving, talk, until


def test_two_run_one_waits_and_the_next_is_refused() -> None:
    policy, replies = Policy(), list[Reply]()

    def ask(port: int) -> None:
        replies.append(talk(port, post("/v1/ask", BODY)))

    with serving(policy, at_once=2, queue=1) as port:
        threads = [threading.Thread(target=ask, args=(port,)) for _ in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda n=number: len(policy.asked) == min(n + 1, 2))  # type: ignore[misc]
        until(lambda: b"gog_edge_questions_waiting 1" in get(port, "/metrics").body)
        assert talk(port, post("/v1/ask", BODY)).status == 429
        assert len(policy.asked) == 2
        policy.let_go.set()
        for thread in threads:
            thread.join(20)
    assert [reply.status for reply in replies] == [200] * 3
    assert {reply.json["text"] for reply in replies} == {"a boat"}


def test_a_client_that_leaves_makes_room_for_the_one_that_waits() -> None:
    policy, replies = Policy(), list[Reply]()
    with serving(policy, at_once=2, queue=1) as port:
        leaving, staying = connect(port), connect(port)
        for connection in (leaving, staying):
            connection.sendall(post("/v1/ask", BODY))
        until(lambda: len(policy.asked) == 2)
        waiting = threading.Thread(target=lambda: replies.append(talk(port, post("/v1/ask", BODY))))
        waiting.start()
        until(lambda: b"gog_edge_questions_waiting 1" in get(port, "/metrics").body)
        leaving.close()
        until(lambda: len(policy.asked) == 3)
        assert policy.cancelled == 1
        policy.let_go.set()
        waiting.join(20)
        staying.close()
    assert replies[0].json["text"] == "a boat"


def test_all_that_run_are_cancelled_when_the_server_ends() -> None:
    policy = Policy()
    with serving(policy, at_once=3) as port:
        connections = [connect(port) for _ in range(3)]
        for connection in connections:
            connection.sendall(post("/v1/ask", BODY))
        until(lambda: len(policy.asked) == 3)
    until(lambda: policy.cancelled == 3)
    for connection in connections:
        connection.close()
