"""Which grammar constrains turns, if any: the dialect's, compiled for the policy's tokenizer while nobody waits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from gog_edge.agent.dispatch import run_in_thread
from gog_edge.dialects import Dialect
from gog_edge.errors import GrammarError
from gog_edge.runtime.constraint import TokenGrammar, available
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
        self._insists = wanted == "on"
        lark = dialect.grammar() if wanted != "off" else None
        if self._insists and lark is None:
            raise GrammarError(f"dialect {dialect.name!r} offers no grammar; run with the grammar off")
        if self._insists and not available():
            raise GrammarError("the grammar needs llguidance: pip install 'gog-edge[grammar]', or run without it")
        self._lark = lark if available() else None
        if self._lark is not None:
            tokens, vocab = model.manifest.tokens, model.manifest.decoder.vocab
            self._compiled = run_in_thread(
                lambda: TokenGrammar(model.tokenizer.backend, tokens.eos, vocab), "grammar", daemon=False
            )

    def constraint(self) -> Constraint | None:
        """Of a new turn; None where turns are not constrained.

        Raises:
            GrammarError: the grammar is required, and it can't be compiled for this tokenizer.
        """
        if self._lark is None:
            return None
        try:
            made: Constraint = self._compiled.result().constraint(self._lark)
        except GrammarError as e:
            if self._insists:
                raise
            log.warning("turns are not constrained: %s", e)
            return None
        return made
