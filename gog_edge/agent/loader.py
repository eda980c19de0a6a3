"""From a path to an agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gog_edge import families, library
from gog_edge.agent.agent import Agent
from gog_edge.agent.options import RunOptions
from gog_edge.bundle import MANIFEST, Bundle, load_whole
from gog_edge.dialects import Dialect
from gog_edge.dialects import load as load_dialect
from gog_edge.disk.paths import cache_directory
from gog_edge.engines.base import Engine
from gog_edge.engines.registry import create_engine, is_remote
from gog_edge.errors import GogEdgeError
from gog_edge.runtime.model import TOKENIZER, Model
from gog_edge.runtime.remote.start import remote_model
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.search.base import Embedder, SearchProvider

TEMPLATE = "chat_template.jinja"
DIALECT = "dialect.toml"


def load(
    bundle: str | Path | Bundle,
    *,
    engine: str | None = None,
    index: str | Path | None = None,
    search: str | Path | None = None,
    providers: Sequence[SearchProvider] = (),
    dialect: str | Path | Dialect | None = None,
    options: RunOptions | None = None,
    engine_options: Any = None,
) -> Agent:
    """Load a policy, ready to be asked.

    Args:
        bundle: an exported bundle: its folder, or its name in the library (`gog-edge list`). With an engine on a
            server also a checkpoint's folder, whose weights need not be there, or the name of a family.
        engine: "cpu", "cuda", "tensorrt", … (see `engines.registry`), or "openai:URL" for a policy on a server
            (docs/remote.md); default: what the bundle was exported for.
        index: folder of a local index, or its copy in Qdrant (qdrant:URL#COLLECTION); searched before `providers`.
        search: TOML file of web search providers (docs/search.md), asked after the index; results are kept on disk.
        providers: further search providers, asked in order; they stay the caller's to close.
        dialect: name or file, or a loaded dialect, that replaces the bundle's.
        options: how questions are run.
        engine_options: the engine's own options (`OrtOptions` …).

    Raises:
        BundleError: missing, corrupt, or of another version. EngineError: the graphs can't be loaded here.
        DialectError: the dialect is wrong. SearchIndexError: the index is missing or of another encoder.
        GrammarError: a grammar is required but not available. UsageError: an option makes no sense.
    """
    options = options or RunOptions()
    where = bundle if isinstance(bundle, Bundle) else find_policy(bundle, engine)

    def assemble(opened: Bundle) -> Agent:
        return _assemble(opened, engine, index, search, providers, dialect, options, engine_options)

    return load_whole(where, assemble, Agent.close)


def _assemble(
    opened: Bundle,
    engine: str | None,
    index: str | Path | None,
    search: str | Path | None,
    providers: Sequence[SearchProvider],
    dialect: str | Path | Dialect | None,
    options: RunOptions,
    engine_options: Any,
) -> Agent:
    """See `load`. What parsers and engines read is hashed before they read it, weights while they do."""
    if is_remote(engine):
        from gog_edge.engines.remote.policy import check_dialect

        check_dialect(opened, dialect)
        speech = bundle_dialect(opened, dialect)
        server = create_engine(engine, opened, engine_options)
        return _agent(lambda: remote_model(opened, server, options), server, speech, index, search, providers, options)
    weights = opened.weights
    opened.check(opened.manifest.files.keys() - weights)
    with ThreadPoolExecutor(2) as pool:  # the vocabulary and the graphs take about as long, side by side
        tokenizer = pool.submit(Tokenizer.load, opened.path(TOKENIZER))
        hashed = pool.submit(opened.check, weights)
        try:
            speech = bundle_dialect(opened, dialect)
            graphs = create_engine(engine, opened, engine_options)
        except GogEdgeError:
            hashed.result()  # damage that is known to be one is said first
            raise

    def whole() -> Model:
        hashed.result()
        return Model.assemble(opened, graphs, options, tokenizer.result())

    return _agent(whole, graphs, speech, index, search, providers, options)


def _agent(
    make: Callable[[], Model],
    graphs: Engine,
    speech: Dialect,
    index: str | Path | None,
    search: str | Path | None,
    providers: Sequence[SearchProvider],
    options: RunOptions,
) -> Agent:
    """The agent around a model; closes what was opened where that fails."""
    owned: list[SearchProvider] = []
    try:
        model = make()
        if index is not None:
            owned.append(_local(index, model, options))
        if search is not None:
            from gog_edge.search.config import load_providers

            folder = (options.cache_dir or cache_directory()) / "search"
            owned.extend(load_providers(search, cache_dir=folder))
        return Agent(model, speech, [*owned, *providers], options, owned=owned)
    except BaseException:
        for provider in owned:
            provider.close()
        graphs.close()
        raise


def find_policy(given: str | Path, engine: str | None = None) -> Path | Bundle:
    """The folder of a bundle; for an engine on a server also what is known of a policy without one.

    Raises:
        BundleError: it is neither.
    """
    if is_remote(engine) and not (Path(given) / MANIFEST).is_file():
        from gog_edge.engines.remote.policy import is_policy, open_policy

        if is_policy(given):
            return open_policy(given)
    return library.find(given)


def open_bundle(given: str | Path, engine: str | None = None) -> Bundle:
    """What `find_policy` finds, opened.

    Raises:
        BundleError: it can't be.
    """
    found = find_policy(given, engine)
    return found if isinstance(found, Bundle) else Bundle.open(found)


def bundle_dialect(bundle: Bundle, dialect: str | Path | Dialect | None = None) -> Dialect:
    """The dialect that a bundle names (or `dialect` instead), bound to its chat template and family.

    Raises:
        DialectError: there is no such dialect, or it is wrong. BundleError: the bundle's family is not known here.
    """
    if isinstance(dialect, Dialect):
        return dialect
    manifest = bundle.manifest
    name: str | Path = dialect if dialect is not None else manifest.dialect
    if dialect is None and bundle.has(str(name)):
        name = bundle.path(str(name))
    template = bundle.read_text(TEMPLATE) if bundle.has(TEMPLATE) else None
    frame = families.named(manifest.family).box_frame
    return load_dialect(name, frame=frame, chat_template=template, named_tokens=manifest.named_tokens)


def _local(index: str | Path, model: Model, options: RunOptions) -> SearchProvider:
    """The index, searched with the encoder that made its vectors: the tower of this policy, or a given one."""
    from gog_edge.search.embedders import embedder_for, embedder_of
    from gog_edge.search.local.provider import LocalProvider
    from gog_edge.search.qdrant.collection import is_address

    if is_address(index):
        from gog_edge.search.qdrant.provider import QdrantProvider

        def tower(facts: dict[str, Any]) -> Embedder | None:
            return embedder_for(index, facts["encoder"], facts["encoder_file"], model.vision)

        return QdrantProvider(index, tower, cut=options.cut, expand=options.expand)
    return LocalProvider(index, embedder_of(index, model.vision), cut=options.cut, expand=options.expand)
