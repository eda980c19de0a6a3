"""Optimiser and data parallelism for training in bfloat16 on CPU cores.

Matrix products in bfloat16 run about three times as fast as in float32 on these cores, but only if the whole module is
bfloat16 (autocast loses the gain in casts). So the module is bfloat16 and float32 masters live here: Muon for the
matrices inside blocks, AdamW for embeddings, norms and biases. Processes of one thread each share a batch: two
threads in one process lose to any other load on the machine, because every small kernel ends in a barrier.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join(rank: int, ranks: int, port: int) -> None:
    """Makes this process one of ``ranks``. A single process needs no group."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=ranks)


def run(target: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Runs ``target(rank, ranks, *arguments)`` in that many processes."""
    if ranks == 1:
        target(0, 1, *arguments)
        return
    torch.multiprocessing.spawn(target, args=(ranks, *arguments), nprocs=ranks, join=True)  # type: ignore[attr-defined]


def schedule(step: int, steps: int, warmup: int = 60, floor: float = 0.02) -> float:
    """Linear warm-up, then cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    at = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at))


class Masters:
    """Float32 masters of the trainable parameters of a bfloat16 module."""

    def __init__(self, module: nn.Module, matrix_lr: float, other_lr: float, decay: float = 0.02) -> None:
        self.pairs: list[tuple[str, nn.Parameter, Tensor]] = []
        matrices, others = [], []
        for name, live in module.named_parameters():
            if not live.requires_grad:
                continue
            master = live.detach().float().clone().requires_grad_()
            self.pairs.append((name, live, master))
            inner = live.ndim == 2 and "embed" not in name and "head" not in name
            (matrices if inner else others).append(master)
        self.optimisers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimisers.append(
                torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=decay, ns_steps=4, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self.optimisers.append(torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0))
        self.base = [o.param_groups[0]["lr"] for o in self.optimisers]

    def step(self, scale: float, clip: float = 1.0) -> float:
        """Averages gradients over processes, clips, updates masters and module. Returns the gradient norm."""
        for _, live, master in self.pairs:
            master.grad = torch.zeros_like(master) if live.grad is None else live.grad.float()
            live.grad = None
        if dist.is_initialized():
            flat = torch.cat([m.grad.flatten() for _, _, m in self.pairs if m.grad is not None])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            at = 0
            for _, _, master in self.pairs:
                master.grad = flat[at : at + master.numel()].view_as(master)
                at += master.numel()
        norm = float(torch.nn.utils.clip_grad_norm_([m for _, _, m in self.pairs], clip))
        if math.isfinite(norm):
            for optimiser, base in zip(self.optimisers, self.base, strict=True):
                optimiser.param_groups[0]["lr"] = base * scale
                optimiser.step()
            with torch.no_grad():
                for _, live, master in self.pairs:
                    live.copy_(master)
        return norm

    def state(self) -> dict[str, Any]:
        return {
            "masters": {n: m.detach() for n, _, m in self.pairs},
            "optimisers": [o.state_dict() for o in self.optimisers],
        }

    def load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, live, master in self.pairs:
                master.copy_(state["masters"][name])
                live.copy_(master)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def save(path: Path, payload: dict[str, Any]) -> None:
    """Writes a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(payload, part)
    part.replace(path)


def begin(masters: Masters, path: Path, inside: str = "") -> None:
    """Starts from the weights (not the optimiser) of another phase, wherever the names agree (those of the checkpoint
    without the prefix ``inside``)."""
    saved = torch.load(path, weights_only=False)["masters"]["masters"]
    saved = {k.removeprefix(inside): v for k, v in saved.items()}
    with torch.no_grad():
        for name, live, master in masters.pairs:
            if name in saved:
                rows = min(len(master), len(saved[name])) if master.ndim else 1
                master[:rows].copy_(saved[name][:rows])  # a read-out that has grown keeps what it had
                live.copy_(master)
