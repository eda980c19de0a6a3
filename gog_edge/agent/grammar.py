"""Which grammar constrains turns, if any: the dialect's, compiled for the policy's tokenizer while nobody waits."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from gog_edge.agent.dispatch import run_in_thread
from gog_edge.dialects import Dialect
from gog_edge.engines.base import WritesTurns
from gog_edge.errors import DialectError, GrammarError, UsageError
from gog_edge.runtime.constraint import TokenGrammar, available, problem_of
from gog_edge.runtime.model import Model

if TYPE_CHECKING:
    from gog_edge.runtime.generate import Constraint

log = logging.getLogger("gog_edge.agent")


class TurnGrammar:
    """The grammar of an agent's turns. `wanted`: see `RunOptions.grammar`."""

    def __init__(self, model: Model, dialect: Dialect, wanted: Literal["auto", "on", "off"]) -> None:
        """Choose, and begin to compile.

        Raises:
            GrammarError: a grammar is required but not available.
        """
        if isinstance(model.engine, WritesTurns):
            if wanted == "on":
                raise GrammarError("the policy runs on a server, which writes without our grammar: run with it off")
            wanted = "off"  # and schemas of answers are refused by `check`
        self._insists = wanted == "on"
        self._model, self._dialect = model, dialect
        lark = dialect.grammar() if wanted != "off" else None
        if self._insists and lark is None:
            raise GrammarError(f"dialect {dialect.name!r} offers no grammar; run with the grammar off")
        if self._insists and not available():
            raise GrammarError("the grammar needs llguidance: pip install 'gog-edge[grammar]', or run without it")
        self._lark = lark if available() else None
        if self._lark is not None:
            _ = self._compiled

    def constraint(self, forced: bool = False, schema: Mapping[str, Any] | None = None) -> Constraint | None:
        """Of a new turn, `forced` where it answers only; None where turns are not constrained. `schema`: of an object,
        which an answer has to be.

        Raises:
            GrammarError: the grammar is required, and it can't be compiled for this tokenizer.
            UsageError: as `check` says.
        """
        if schema is not None:
            lark = self._dialect.forced_grammar(schema) if forced else self._dialect.grammar(schema)
            assert lark is not None
            return self._made(lark)
        if self._lark is None or forced:
            return None
        try:
            return self._made(self._lark)
        except GrammarError as e:
            if self._insists:
                raise
            log.warning("turns are not constrained: %s", e)
            return None

    def check(self, schema: Mapping[str, Any]) -> None:
        """Whether answers can be made to follow `schema`.

        Raises:
            UsageError: the dialect's answers can't, llguidance is missing, or it does not know what the schema says.
        """
        if isinstance(self._model.engine, WritesTurns):
            raise UsageError("a JSON schema for answers can't be held to by a policy on a server")
        if not available():
            raise UsageError("a JSON schema for answers needs llguidance: pip install 'gog-edge[grammar]'")
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise UsageError("the JSON schema must be that of an object: an answer is one")
        try:
            json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as e:
            raise UsageError(f"the JSON schema can't be written as JSON: {e}") from e
        try:
            for lark in (self._dialect.grammar(schema), self._dialect.forced_grammar(schema)):
                if lark is not None and (problem := problem_of(lark)):
                    raise UsageError(f"answers can't follow this JSON schema: {problem}")
        except DialectError as e:
            raise UsageError(f"answers can't follow a JSON schema: {e}") from e

    def _made(self, lark: str) -> Constraint:
        made: Constraint = self._compiled.result().constraint(lark)
        return made

    @cached_property
    def _compiled(self) -> Future[TokenGrammar]:
        """Begun when it is first asked for."""
        model = self._model
        tokens, vocab = model.manifest.tokens, model.manifest.decoder.vocab
        return run_in_thread(lambda: TokenGrammar(model.tokenizer.backend, tokens.eos, vocab), "grammar", daemon=False)
