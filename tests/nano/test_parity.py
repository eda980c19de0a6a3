"""The dense-batch module of the recipe equals transformers' Qwen3-VL, so what is trained is what is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def _patches(image: torch.Tensor) -> torch.Tensor:
    """Patches as the Hugging Face processor gives them: two equal temporal slices."""
    from recipe.model import PATCH, patchify

    flat = patchify(image)[0].view(-1, 3, 1, PATCH, PATCH)
    return flat.expand(-1, -1, 2, -1, -1).reshape(flat.shape[0], -1)


@pytest.mark.parametrize("grids", [((9, 12), (3, 4)), ((3, 4), (2, 6), (4, 4))])
def test_logits_equal_transformers(tmp_path: Path, nano_dir: Path, grids: tuple[tuple[int, int], ...]) -> None:
    from recipe import batches, samples, weights
    from recipe.model import Dims, Nano

    torch.manual_seed(3)
    net = Nano(Dims()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    net.load_state_dict({k: v.half().float() for k, v in net.state_dict().items()})
    weights.write(net, nano_dir, tmp_path)
    reference = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()

    ids: list[int] = [5, 6, 7]
    slots, pictures = [], []
    for rows, columns in grids:
        ids.append(weights.IDS["<|vision_start|>"])
        slots.append((len(ids), None, rows, columns))
        ids += [weights.IDS["<|image_pad|>"]] * (rows * columns) + [weights.IDS["<|vision_end|>"], 11, 12]
        pictures.append(torch.randint(0, 256, (1, rows * 32, columns * 32, 3), dtype=torch.uint8))
    places = batches.positions_of(samples.Encoded(ids, [-100] * len(ids), slots), len(ids))
    with torch.no_grad():
        x = net.language_model.embed_tokens(torch.tensor([ids]))
        where, deep = [], []
        for (first, _, rows, columns), picture in zip(slots, pictures, strict=True):
            features, levels = net.visual(picture)
            x[0, first : first + rows * columns] = features[0]
            where.append(torch.arange(first, first + rows * columns))
            deep.append(levels[:, 0])
        at, stacked = torch.cat(where), torch.cat(deep, 1)
        hidden = net.language_model(x, torch.from_numpy(places)[:, None], [(at, level) for level in stacked])
        ours = net.language_model.logits(hidden)
        theirs = reference(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.cat([_patches(p) for p in pictures]),
            image_grid_thw=torch.tensor([[1, 2 * r, 2 * c] for r, c in grids]),
            mm_token_type_ids=torch.tensor([[int(i == weights.IDS["<|image_pad|>"]) for i in ids]]),
        ).logits
    assert torch.allclose(ours, theirs, atol=2e-4), float((ours - theirs).abs().max())


def test_a_cache_changes_nothing() -> None:
    from recipe.model import Dims, Nano

    torch.manual_seed(4)
    net = Nano(Dims(layers=2)).eval()
    ids = torch.randint(0, 3000, (1, 20))
    positions = torch.arange(20).expand(3, 1, 20)
    with torch.no_grad():
        whole = net.language_model(net.language_model.embed_tokens(ids), positions)
        past: list[list[torch.Tensor]] = [[], []]
        parts = [
            net.language_model(net.language_model.embed_tokens(ids[:, a:b]), positions[:, :, a:b], past=past)
            for a, b in ((0, 7), (7, 8), (8, 20))
        ]
    assert torch.allclose(whole, torch.cat(parts, 1), atol=1e-5)


def test_start_copies_before_any_training(nano_dir: Path) -> None:
    from recipe import batches, start, train_policy
    from recipe.model import Dims, Nano

    from gog_edge.runtime.tokenizer import Tokenizer

    torch.manual_seed(2)
    net = Nano(Dims())
    start.induction(net)
    tokenizer = Tokenizer.load(nano_dir / "tokenizer.json")
    rng = np.random.default_rng(1)
    runs = [train_policy.echo(rng, tokenizer) for _ in range(30)]
    clear = [e for e in runs if len(set(e.ids)) > 0.4 * len(e.ids)]  # in the others what stood before tells too little
    batch = batches.collate([(-1, e) for e in clear[:6]], 0)
    with torch.no_grad():
        hidden = net.language_model(net.language_model.embed_tokens(batch.ids), batch.positions)
        at = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
        guess = net.language_model.logits(hidden[at]).argmax(-1)
    assert float((guess == batch.labels[:, 1:][at]).float().mean()) > 0.9
