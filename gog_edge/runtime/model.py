"""A policy in memory: everything that sessions share. Made once, used by any number of threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from gog_edge.bundle import Bundle
from gog_edge.disk.paths import cache_directory
from gog_edge.engines.base import Engine, FixedContext, RowsIndependent
from gog_edge.errors import UsageError
from gog_edge.manifest import Manifest
from gog_edge.runtime.decoder import Decoder, TokenEmbedding, check_rotary
from gog_edge.runtime.feature_cache import DiskFeatures, FeatureCache
from gog_edge.runtime.prefix_cache import PrefixCache
from gog_edge.runtime.speculation import GuessMemory
from gog_edge.runtime.tokenizer import Tokenizer
from gog_edge.runtime.vision import VisionEncoder

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How much of a model is kept and run at a time. Zero and None mean: what the checkpoint says.

    Args:
        max_context: tokens of one conversation; at most the checkpoint's own.
        prefill_chunk: tokens per prefill run.
        feature_cache_bytes: of vision features kept in memory.
        feature_cache_disk: bytes of vision features kept in the cache folder across processes; 0 keeps none.
        prefix_cache: keep the KV of the system prompt and tools in memory and in the cache folder.
        cache_dir: folder of caches (default: $GOG_EDGE_CACHE, else the user's cache folder).

    Raises:
        UsageError: a value that makes no sense; names it.
    """

    max_context: int = 0
    prefill_chunk: int = 512
    feature_cache_bytes: int = 256 << 20
    feature_cache_disk: int = 0
    prefix_cache: bool = True
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
                raise UsageError(f"{f.name} is {value}: it can't be negative")
        if self.prefill_chunk < 1:
            raise UsageError("prefill_chunk is 0: at least 1 token has to be run at a time")


@dataclass(frozen=True)
class Model:
    """Graphs, tokenizer, embedding and caches of one bundle. Thread-safe."""

    bundle: Bundle
    engine: Engine
    tokenizer: Tokenizer
    decoder: Decoder
    vision: VisionEncoder
    prefixes: PrefixCache | None
    max_context: int
    chunk: int
    guesses: GuessMemory = field(default_factory=GuessMemory)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def rows_independent(self) -> bool:
        """Whether a token's logits are the same, bit for bit, whatever is computed in the same run.

        Native operators are made so. ONNX Runtime's attention is not (its sums follow the number of rows), and its
        DynamicQuantizeMatMul (8 bits without blocks) quantises a whole run with one scale; TensorRT picks kernels by
        the number of rows. There a guess, right or wrong, can change what the policy writes.
        """
        decoder = self.engine.decoder
        return isinstance(decoder, RowsIndependent) and decoder.rows_independent

    @property
    def state_arrays(self) -> int:
        """How many arrays the state of recurrent layers is (a convolution's and a memory's for each); 0: all layers
        attend, and going back costs nothing."""
        return self.decoder.state_arrays

    @classmethod
    def assemble(
        cls, bundle: Bundle, engine: Engine, options: ModelOptions, tokenizer: Tokenizer | None = None
    ) -> Model:
        """Put the parts of a bundle around an engine.

        Args:
            tokenizer: the bundle's, where it was loaded already.

        Raises:
            BundleError: a file is missing or malformed.
        """
        manifest = bundle.manifest
        check_rotary(manifest)
        context = min(options.max_context or manifest.decoder.max_context, manifest.decoder.max_context)
        if isinstance(engine.decoder, FixedContext):
            context = min(context, engine.decoder.max_tokens)
        identity = f"{bundle.fingerprint}:{engine.describe().name}"  # KV rows have their engine's own layout
        folder = options.cache_dir or cache_directory()
        disk = None
        if options.feature_cache_disk:
            disk = DiskFeatures(folder / "features", bundle.vision_fingerprint, options.feature_cache_disk)
        return cls(
            bundle=bundle,
            engine=engine,
            tokenizer=tokenizer or Tokenizer.load(bundle.path(TOKENIZER)),
            decoder=Decoder(engine.decoder, TokenEmbedding(bundle), manifest),
            vision=VisionEncoder(bundle, engine.vision, FeatureCache(options.feature_cache_bytes, disk)),
            prefixes=PrefixCache(folder / "prefixes", identity) if options.prefix_cache else None,
            max_context=context,
            chunk=options.prefill_chunk,
        )
