"""Writing a turn on a server: pieces of text as they arrive, stop strings, limits, the deadline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gog_edge.engines.remote.server import TurnStream
from gog_edge.engines.remote.wire import Piece
from gog_edge.runtime.generate import Constraint, TurnEnd, TurnOptions, TurnResult, TurnWriter
from gog_edge.runtime.remote.session import RemoteSession
from gog_edge.runtime.sampling import Sampler
from gog_edge.runtime.speculation import Speculation
from gog_edge.runtime.telemetry import TokenRecord
from gog_edge.sampling_options import Sampling

_UNKNOWN = -1  # the id of a token whose text alone is known


class RemoteWriter(TurnWriter):
    """See `TurnWriter`. A turn that a deadline interrupted goes on where it was, if it is asked for again."""

    def __init__(self, session: RemoteSession, sampling: Sampling) -> None:
        super().__init__(session, Sampler(sampling), Speculation(max_draft=0))
        self._remote = session
        self._sampling = sampling
        self._open: _OpenTurn | None = None
        self._pace: float | None = None

    @property
    def seconds_per_token(self) -> float | None:
        """Between two tokens of the newest turn that is complete; None before the first."""
        return self._pace

    def close(self) -> None:
        """Let go of a turn that nobody reads to its end."""
        if self._open is not None:
            self._open.stream.close()
            self._open = None

    def turn(
        self, options: TurnOptions, constraint: Constraint | None = None, result: TurnResult | None = None
    ) -> Iterator[TokenRecord]:
        """See `TurnWriter.turn`; the server's failures are EngineErrors. Records have one piece of text each."""
        result = result if result is not None else TurnResult()
        session, clock = self._remote, options.budget.clock
        turn = self._open
        if turn is None or turn.result is not result:
            self.close()
            request, meant = session.request(self._sampling, options.max_tokens, options.stop)
            if meant:
                session.trace.note(f"this server can't begin a turn with {meant!r}: it is looked for instead")
            stream = session.server.turn(request)
            echo = "" if meant or request.continues else session.prefill
            turn = self._open = _OpenTurn(stream, result, options.stop, meant=meant, echo=echo)
            turn.unread = len(session) - session.computed
        usage: Mapping[str, Any] | None = None
        for piece in turn.stream.read(options.budget):
            usage = piece.usage or usage
            text = turn.take(piece)
            if turn.first is None and (piece.text or piece.thought):
                turn.first = clock.now()
            if text and (kept := turn.cut(text)):
                yield self._written(turn, kept)
            if result.end is TurnEnd.STOP:
                break  # the server need not write on; its counts are not waited for
            if turn.pieces >= options.max_tokens:
                result.end = TurnEnd.TOKENS
                break
        if result.end is None:
            if (rest := turn.rest()) and (kept := turn.cut(rest)):
                yield self._written(turn, kept)
            result.end = result.end or turn.end(options.max_tokens)
        if usage is not None:
            session.counted(usage, turn.unread, turn.pieces)
        if turn.first is not None and turn.pieces > 1:
            self._pace = (clock.now() - turn.first) / (turn.pieces - 1)
        self.close()

    def _written(self, turn: _OpenTurn, text: str) -> TokenRecord:
        turn.result.text += text
        turn.result.ids.append(_UNKNOWN)
        turn.pieces += 1
        self._remote.wrote(text)
        return self._remote.trace.token(text, ())


class _OpenTurn:
    """A turn that is being written. `meant`: a beginning that the server can't be given; `echo`: the chat template's,
    which the server may repeat."""

    def __init__(self, stream: TurnStream, result: TurnResult, stop: tuple[str, ...], *, meant: str, echo: str) -> None:
        self.stream, self.result = stream, result
        self.pieces = self.unread = 0
        self.first: float | None = None  # when the first text came
        self._meant, self._echo = meant, echo
        self._held = ""  # text that waits for one of the two
        self._stop, self._longest = stop, max((len(s) for s in stop), default=0)
        self._thinks = False
        self._calls: dict[int, list[str]] = {}
        self._finish = ""

    def take(self, piece: Piece) -> str:
        """The piece as the policy wrote it: a server that takes reasoning and calls out of the text has them put
        back."""
        self._finish = piece.finish or self._finish
        text = piece.thought
        self._thinks = self._thinks or bool(piece.thought)
        if self._thinks and (piece.text or piece.calls):
            self._thinks, text = False, text + "</think>"
        text += piece.text
        for call in piece.calls:
            self._call(call)
        return self._begin(text)

    def rest(self) -> str:
        """What was still held back when the server ended the turn."""
        calls = "".join(f"\n<tool_call>\n{_call_text(*self._calls[i])}\n</tool_call>" for i in sorted(self._calls))
        held, self._held, self._meant, self._echo = self._held + calls, "", "", ""
        return held

    def cut(self, text: str) -> str:
        """`text` up to the end of the first stop string that it completes."""
        before = self.result.text[-(self._longest - 1) :] if self._longest > 1 else ""
        window = before + text
        found = [(window.find(s) + len(s), s) for s in self._stop if s in window]
        if not found:
            return text
        end, stop = min(found)
        self.result.end, self.result.stop = TurnEnd.STOP, stop
        return window[len(before) : end]

    def end(self, max_tokens: int) -> TurnEnd:
        if self._finish != "length":
            return TurnEnd.EOS
        return TurnEnd.TOKENS if self.pieces >= max_tokens else TurnEnd.CONTEXT

    def _begin(self, text: str) -> str:
        if self._echo:
            self._held += text
            if self._echo.startswith(self._held) and self._held != self._echo:
                return ""
            text, self._held = self._held.removeprefix(self._echo), ""
            self._echo = ""
        if self._meant:
            self._held += text
            if self._meant not in self._held:
                return ""
            text, self._held = self._held.split(self._meant, 1)[1], ""
            self._meant = ""
        return text

    def _call(self, call: Mapping[str, Any]) -> None:
        index = call.get("index")
        name, arguments = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), ["", ""])
        said = call.get("function")
        said = said if isinstance(said, Mapping) else {}
        self._calls[index if isinstance(index, int) else len(self._calls) - 1] = [
            name + str(said.get("name") or ""),
            arguments + str(said.get("arguments") or ""),
        ]


def _call_text(name: str, arguments: str) -> str:
    try:
        return json.dumps({"name": name, "arguments": json.loads(arguments or "{}")}, ensure_ascii=False)
    except (ValueError, RecursionError):
        return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
