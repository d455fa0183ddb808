"""Box heads and score module of the PyTorch peer (see `torch_peer.py`)."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixformer_jax.models.config import HeadNormKind, MixFormerConfig

EPSILON = 1e-5
POOLED = 4


class FrozenBatchNorm(nn.Module):
    """Batch norm of four buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return functional.batch_norm(x, mean, var, self.get_buffer("weight"), self.get_buffer("bias"), eps=EPSILON)


def batch_norm(channels: int, frozen: bool) -> nn.Module:
    return FrozenBatchNorm(channels) if frozen else nn.BatchNorm2d(channels, eps=EPSILON)


def _conv(inputs: int, outputs: int, norm: HeadNormKind) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), batch_norm(outputs, norm == "frozen"), nn.ReLU(inplace=True)
    )


def _upsample(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=float(factor))


class CornerHead(nn.Module):
    """Both corner heads; the two branches differ in the suffix of their names."""

    def __init__(self, config: MixFormerConfig) -> None:
        super().__init__()
        inputs, width, norm = config.output_width, config.head_width, config.head_norm
        self.is_pyramid = config.head == "corner_pyramid"
        widths = [inputs, *(width // 2**i for i in range(4))]
        for suffix in ("tl", "br"):
            for i in range(4):
                self.add_module(f"conv{i + 1}_{suffix}", _conv(widths[i], widths[i + 1], norm))
            self.add_module(f"conv5_{suffix}", nn.Conv2d(widths[4], 1, 1))
            if self.is_pyramid:
                self.add_module(f"adjust1_{suffix}", _conv(inputs, widths[2], norm))
                self.add_module(f"adjust2_{suffix}", _conv(inputs, widths[3], norm))
                for name, chain in (("adjust3", [*widths[2:], 1]), ("adjust4", [*widths[3:], 1])):
                    convs = (_conv(before, after, norm) for before, after in itertools.pairwise(chain))
                    self.add_module(f"{name}_{suffix}", nn.Sequential(*convs))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [b, c, h, w] to boxes [b, 4] (xyxy, normalised), and two maps of logits [b, h, w]."""
        branch = self._pyramid if self.is_pyramid else self._plain
        top_left, bottom_right = branch(features, "tl").float(), branch(features, "br").float()
        return torch.cat([_soft_argmax(top_left), _soft_argmax(bottom_right)], dim=1), top_left, bottom_right

    def _run(self, name: str, suffix: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"{name}_{suffix}")(x)

    def _plain(self, x: Tensor, suffix: str) -> Tensor:
        for i in range(1, 6):
            x = self._run(f"conv{i}", suffix, x)
        return x[:, 0]

    def _pyramid(self, x: Tensor, suffix: str) -> Tensor:
        stride1 = self._run("conv2", suffix, self._run("conv1", suffix, x))
        finer = _upsample(stride1, 2) + _upsample(self._run("adjust1", suffix, x), 2)
        stride2 = self._run("conv3", suffix, finer)
        finest = _upsample(stride2, 2) + _upsample(self._run("adjust2", suffix, x), 4)
        score = self._run("conv5", suffix, self._run("conv4", suffix, finest))
        score = score + _upsample(self._run("adjust3", suffix, stride1), 4)
        return (score + _upsample(self._run("adjust4", suffix, stride2), 2))[:, 0]


def _soft_argmax(logits: Tensor) -> Tensor:
    """Expected (x, y) [b, 2] under softmax(logits [b, h, w]); a cell stands for its top-left."""
    height, width = logits.shape[1:]
    weights = logits.flatten(1).softmax(dim=1).unflatten(1, (height, width))
    x = (weights.sum(dim=1) * torch.arange(width, device=logits.device)).sum(dim=1) / width
    y = (weights.sum(dim=2) * torch.arange(height, device=logits.device)).sum(dim=1) / height
    return torch.stack([x, y], dim=1)


def precise_roi_pool(features: Tensor, boxes_xyxy: Tensor, rows: int, columns: int) -> Tensor:
    """Features [b, c, h, w] and a box for each, in cells, to means over bins [b, c, rows, columns].

    Integrals of hat functions on both sides of the features; empty boxes give 0.
    """
    x1, y1, x2, y2 = boxes_xyxy.float().unbind(dim=1)
    left = _hat_means(y1, y2, rows, features.shape[2]).to(features.dtype)
    right = _hat_means(x1, x2, columns, features.shape[3]).to(features.dtype)
    return left[:, None] @ features @ right[:, None].transpose(2, 3)


def _hat_means(start: Tensor, end: Tensor, bins: int, cells: int) -> Tensor:
    """Mean of the hat of every cell over every bin between start and end [b]: [b, bins, cells]."""
    steps = torch.arange(bins + 1, device=start.device) / bins
    edges = (start[:, None] + (end - start)[:, None] * steps)[:, :, None] - torch.arange(cells, device=start.device)
    low, high = edges[:, :-1], edges[:, 1:]
    rising_low, rising_high = low.clamp(-1, 0), high.clamp(-1, 0)
    falling_low, falling_high = low.clamp(0, 1), high.clamp(0, 1)
    rising = (rising_high - rising_low) * (1 + (rising_low + rising_high) / 2)
    falling = (falling_high - falling_low) * (1 - (falling_low + falling_high) / 2)
    length = high - low
    return torch.where(length > 0, (rising + falling) / length, 0.0)


class ScoreModule(nn.Module):
    """A learned token attends to 16 pooled search cells, then to the initial template."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, width**-0.5
        self.score_token = nn.Parameter(torch.zeros(1, 1, width))
        self.score_head = nn.Module()
        self.score_head.layers = nn.ModuleList(nn.Linear(width, outputs) for outputs in (width, width, 1))
        for name in ("proj_q", "proj_k", "proj_v", "proj"):
            self.add_module(name, nn.ModuleList(nn.Linear(width, width) for _ in range(2)))
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.norm2 = nn.ModuleList(nn.LayerNorm(width, eps=EPSILON) for _ in range(2))

    def forward(self, search: Tensor, template: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """Maps [b, c, h, w] of the search region and the initial template, normalised boxes [b, 4]: logits [b]."""
        pooled = precise_roi_pool(search, boxes_xyxy * search.shape[3], POOLED, POOLED)
        query = self.norm1(self.score_token.expand(len(search), -1, -1))
        for step, maps in enumerate((pooled, template)):
            tokens = maps.flatten(2).transpose(1, 2)
            q, k, v = (
                self.get_submodule(f"{name}.{step}")(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for name, x in (("proj_q", query), ("proj_k", tokens), ("proj_v", tokens))
            )
            mixed = ((q @ k.transpose(2, 3) * self.scale).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
            query = self.norm2[step](self.get_submodule(f"proj.{step}")(mixed))
        first, second, last = self.score_head.get_submodule("layers").children()
        return last(functional.relu(second(functional.relu(first(query)))))[:, 0, 0].float()
