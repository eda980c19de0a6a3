"""A collection of Qdrant as an index: one point an entry, with its pictures' vectors and its words.

`image`: the vectors of all its pictures, of unit length (the best one counts). `text`: a sparse vector whose product
with the words of a query is SQLite's bm25: the whole weight of a word in an entry (Robertson, Zaragoza 2009; k1 = 1.2,
b = 0.75, titles count four times, idf of the index that was pushed) is stored, a query has 1 for each word. Words are
stemmed by FTS5 on both sides. Point 0 says what the index is.
"""

from __future__ import annotations

import os
import re
import sqlite3
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from math import log
from typing import Any

from gog_edge.errors import SearchIndexError, UsageError
from gog_edge.search.local.index import LocalIndex
from gog_edge.search.local.lexical import TITLE_WEIGHT
from gog_edge.search.local.text import TOKENIZER, normalise

KEY = "QDRANT_API_KEY"
IMAGE, TEXT = "image", "text"
FACTS = 0  # the point that says what the index is; entries count from 1
_K1, _B = 1.2, 0.75
_BATCH = 256
_FORM = re.compile(r"qdrant:(?P<where>[^#]+)#(?P<name>[^#/]+)")


def is_address(given: object) -> bool:
    """Whether an index is named by its place in Qdrant."""
    return str(given).startswith("qdrant:")


def connect(given: object) -> tuple[Any, str]:
    """(client, collection) of qdrant:URL#COLLECTION, or of qdrant:FOLDER#COLLECTION (a folder that the client keeps by
    itself, without a server). The key is read from QDRANT_API_KEY.

    Raises:
        UsageError: the address can't be read. SearchIndexError: qdrant-client is missing, or can't connect.
    """
    found = _FORM.fullmatch(str(given))
    if found is None:
        raise UsageError(f"{given}: write qdrant:http://HOST:6333#COLLECTION, or qdrant:FOLDER#COLLECTION")
    where = re.sub(r"^(https?):/+", r"\1://", found["where"])  # a path has lost one of the slashes
    try:
        from qdrant_client import QdrantClient
    except ImportError as e:
        raise SearchIndexError("Qdrant needs its client: pip install 'gog-edge[qdrant]'") from e
    try:
        if where.startswith(("http://", "https://")):
            return QdrantClient(
                url=where, api_key=os.environ.get(KEY) or None, timeout=20, check_compatibility=False
            ), found["name"]
        return QdrantClient(path=where), found["name"]
    except Exception as e:
        raise unusable(given, e) from e


def unusable(given: object, error: Exception) -> SearchIndexError:
    """What the client said, in one line."""
    return SearchIndexError(f"{given}: Qdrant fails ({' '.join(str(error).split())[:200] or type(error).__name__})")


def push(index: LocalIndex, given: object, progress: Callable[[int], None] = lambda done: None) -> int:
    """Copy an index into a collection, which must not exist yet; the number of entries.

    Raises:
        SearchIndexError: the collection exists, or Qdrant fails. UsageError: the address can't be read.
    """
    client, name = connect(given)
    from qdrant_client import models

    with closing(client):
        try:
            if client.collection_exists(name):
                raise SearchIndexError(f"{given}: there is a collection of this name; delete it first, or name another")
            _, dim, _, _ = index.store.vector_state()
            many = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
            dense = models.VectorParams(size=dim, distance=models.Distance.DOT, multivector_config=many)
            client.create_collection(
                name,
                vectors_config={IMAGE: dense} if dim else {},
                sparse_vectors_config={TEXT: models.SparseVectorParams()},
            )
            facts = {"encoder": index.encoder, "encoder_file": index.encoder_file, "dim": dim}
            client.upsert(name, [models.PointStruct(id=FACTS, vector={}, payload=facts)])
            done = 0
            for batch in _batches(_points(index)):
                client.upsert(name, [_point(models, *entry) for entry in batch])
                progress(done := done + len(batch))
            return done
        except SearchIndexError:
            raise
        except Exception as e:
            raise unusable(given, e) from e


def words_of(text: str) -> set[str]:
    """The words of a text, stemmed as FTS5 stems those of entries."""
    with closing(sqlite3.connect(":memory:")) as c:
        c.execute(f'CREATE VIRTUAL TABLE t USING fts5(x, tokenize="{TOKENIZER}")')
        c.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, row)")
        c.execute("INSERT INTO t VALUES (?)", (normalise(text),))
        return {row[0] for row in c.execute("SELECT term FROM v")}


def number_of(word: str) -> int:
    """The dimension of a word in sparse vectors."""
    return zlib.crc32(word.encode("utf-8", "replace"))


def _points(index: LocalIndex) -> Iterator[tuple[int, list[list[float]], dict[int, float], dict[str, Any]]]:
    """(row, picture vectors, weights of words, payload) of every entry."""
    weights = _weights(index)
    owners: dict[int, list[int]] = defaultdict(list)
    vectors: dict[int, list[float]] = {}
    for keys, rows in index.store.vectors():
        vectors.update(zip(keys.tolist(), rows.tolist()))
    for key, row in index.store.entities_of(list(vectors)).items():
        owners[row].append(key)
    with index.database.use() as c:
        related: dict[int, list[str]] = defaultdict(list)
        for row, target in c.execute("SELECT entity, target FROM relations ORDER BY entity, name, target"):
            related[row].append(_text(target))
    for e in index.entities():
        payload: dict[str, Any] = {"id": e.id, "kind": e.kind, "title": e.title, "text": e.text, "source": e.source}
        payload |= {"images": list(e.images), "related": related.get(e.row, [])}
        yield e.row, [vectors[key] for key in sorted(owners.get(e.row, []))], weights.get(e.row, {}), payload


def _weights(index: LocalIndex) -> dict[int, dict[int, float]]:
    """Row -> dimension of a word -> its bm25 there, from what FTS5 has indexed."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    length: Counter[int] = Counter()
    holds: Counter[str] = Counter()
    with index.database.use() as c:
        c.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.gog_words USING fts5vocab(main, entity_fts, instance)")
        for word, row, column in c.execute("SELECT term, doc, col FROM temp.gog_words"):
            holds[word] += word not in counts[row]
            counts[row][word] += int(TITLE_WEIGHT) if column == "title" else 1
            length[row] += 1
    total = index.store.counts()["entries"]
    mean = sum(length.values()) / max(total, 1)
    idf = {word: max(log((total - n + 0.5) / (n + 0.5)), 1e-6) for word, n in holds.items()}

    def weight(row: int, word: str, count: int) -> float:
        return idf[word] * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * length[row] / mean))

    return {row: {number_of(w): weight(row, w, n) for w, n in found.items()} for row, found in counts.items()}


def _point(models: Any, row: int, images: list[list[float]], words: Mapping[int, float], payload: Any) -> Any:
    vector: dict[str, Any] = {IMAGE: images} if images else {}
    if words:
        vector[TEXT] = models.SparseVector(indices=list(words), values=list(words.values()))
    return models.PointStruct(id=row, vector=vector, payload=payload)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
