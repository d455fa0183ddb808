"""A PyTorch implementation of MixFormer, for comparison.

Plain eager PyTorch with the shapes, parameter names and numbers of the official models (MixViT, MixViT with ConvMAE,
MixCvT, with and without score module), so that `variables_to_official` of our weights loads with `strict=True`. Images
are NCHW. As in the official code, the modules remember the templates: `set_online` once, then `forward_test` for every
frame.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixformer_jax.convert.names import variables_to_official
from mixformer_jax.models.config import HeadNormKind, MixFormerConfig

EPSILON, VIT_EPSILON = 1e-5, 1e-6
POOLED = 4


class FrozenBatchNorm(nn.Module):
    """Batch norm with buffers only."""

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
    """The corner head, plain or pyramid; its two branches differ in the suffix of their names."""

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
    """Expected (x, y) [b, 2] under softmax(logits [b, h, w]), with cells at their top-left corners."""
    height, width = logits.shape[1:]
    weights = logits.flatten(1).softmax(dim=1).unflatten(1, (height, width))
    x = (weights.sum(dim=1) * torch.arange(width, device=logits.device)).sum(dim=1) / width
    y = (weights.sum(dim=2) * torch.arange(height, device=logits.device)).sum(dim=1) / height
    return torch.stack([x, y], dim=1)


def precise_roi_pool(features: Tensor, boxes_xyxy: Tensor, rows: int, columns: int) -> Tensor:
    """Features [b, c, h, w] and a box each, in cells, to means over bins [b, c, rows, columns]; empty boxes give 0.

    Integrals of hat functions, multiplied to both sides of the features.
    """
    x1, y1, x2, y2 = boxes_xyxy.float().unbind(dim=1)
    left = _hat_means(y1, y2, rows, features.shape[2]).to(features.dtype)
    right = _hat_means(x1, x2, columns, features.shape[3]).to(features.dtype)
    return left[:, None] @ features @ right[:, None].transpose(2, 3)


def _hat_means(start: Tensor, end: Tensor, bins: int, cells: int) -> Tensor:
    """Mean of each cell's hat function over each bin between start and end [b]: [b, bins, cells]."""
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


NUM_CLASSES = 1000  # of the unused classifier of official backbones


class Output(NamedTuple):
    """Maps are NCHW, boxes normalised to the search crop."""

    boxes_cxcywh: Tensor
    top_left_logits: Tensor
    bottom_right_logits: Tensor
    features: Tensor
    score_logits: Tensor | None


class Part(NamedTuple):
    """The grids in a sequence of tokens: first `templates` square ones, then that of the search region, if any.

    Without templates, attention uses those of the last sequence without search region.
    """

    templates: int
    template_side: int
    search_side: int

    def images(self) -> list[tuple[int, int]]:
        """(number, side) of the grids that are not empty."""
        grids = [(self.templates, self.template_side), (1, self.search_side)]
        return [(count, side) for count, side in grids if count * side]


class MixedAttention(nn.Module):
    """Asymmetric mixed attention; subclasses project queries, keys and values."""

    def __init__(self, width: int, num_heads: int, scale: float, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        self.fused = fused  # `scaled_dot_product_attention` instead of products and softmax
        self.proj = nn.Linear(width, width)
        self.memory: tuple[Tensor, Tensor] | None = None  # keys and values of the templates [b, heads, n, d]

    def project(self, x: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Queries, keys, values [b, heads, n, d], and the numbers of the templates' queries and keys."""
        raise NotImplementedError

    def forward(self, x: Tensor, part: Part) -> Tensor:
        q, k, v, (num_queries, num_keys) = self.project(x, part)
        if not part.search_side:
            self.memory = k, v
            mixed = self._attend(q, k, v)
        elif part.templates:
            templates = self._attend(q[:, :, :num_queries], k[:, :, :num_keys], v[:, :, :num_keys])
            mixed = torch.cat([templates, self._attend(q[:, :, num_queries:], k, v)], dim=2)
        else:
            if self.memory is None:
                raise RuntimeError("no template is known: call set_online first")
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.memory, (k, v), strict=True))
            mixed = self._attend(q, keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return (q @ k.transpose(2, 3) * self.scale).softmax(dim=-1) @ v


class LinearAttention(MixedAttention):
    """S-MAM: one linear layer."""

    def __init__(self, width: int, num_heads: int, fused: bool) -> None:
        super().__init__(width, num_heads, (width // num_heads) ** -0.5, fused)
        self.qkv = nn.Linear(width, 3 * width)

    def project(self, x: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        templates = part.templates * part.template_side**2
        return q, k, v, (templates, templates)


class ConvolutionalAttention(MixedAttention):
    """W-MAM: 3x3 depth-wise convolutions, with stride 2 for keys and values, before linear layers."""

    def __init__(self, width: int, num_heads: int, frozen: bool, fused: bool) -> None:
        super().__init__(width, num_heads, width**-0.5, fused)
        for name, stride in (("q", 1), ("k", 2), ("v", 2)):
            conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
            projection = OrderedDict(conv=conv, bn=batch_norm(width, frozen))
            self.add_module(f"conv_proj_{name}", nn.Sequential(projection))
            self.add_module(f"proj_{name}", nn.Linear(width, width))

    def project(self, x: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        sizes = [count * side**2 for count, side in part.images()]
        maps = [
            tokens.reshape(-1, side, side, x.shape[2]).permute(0, 3, 1, 2)
            for tokens, (_count, side) in zip(x.split(sizes, dim=1), part.images(), strict=True)
        ]

        def projected(name: str) -> Tensor:
            convolution = self.get_submodule(f"conv_proj_{name}")
            local = [convolution(m).permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[2]) for m in maps]
            tokens = local[0] if len(local) == 1 else torch.cat(local, dim=1)
            return self.get_submodule(f"proj_{name}")(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

        counts = part.templates * part.template_side**2, part.templates * ((part.template_side + 1) // 2) ** 2
        return projected("q"), projected("k"), projected("v"), counts


class Mlp(nn.Module):
    """Two linear layers, or 1x1 convolutions."""

    def __init__(self, width: int, hidden: int, quick: bool = False, convolutional: bool = False) -> None:
        super().__init__()
        self.quick = quick  # CLIP's approximation of GELU
        self.fc1 = nn.Conv2d(width, hidden, 1) if convolutional else nn.Linear(width, hidden)
        self.fc2 = nn.Conv2d(hidden, width, 1) if convolutional else nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else functional.gelu(x))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, attn: MixedAttention, mlp: Mlp, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = attn
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = mlp

    def forward(self, x: Tensor, part: Part) -> Tensor:
        x = x + self.attn(self.norm1(x), part)
        return x + self.mlp(self.norm2(x))


class ConvBlock(nn.Module):
    """ConvMAE's block: a 5x5 depth-wise convolution between 1x1 ones, then an MLP; maps in, maps out."""

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, width * mlp_ratio, convolutional=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv2(self.attn(self.conv1(norm_channels(self.norm1, x))))
        return x + self.mlp(norm_channels(self.norm2, x))


def norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """A layer norm over the channels of NCHW maps."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """A convolution with stride, and a layer norm if `normed`."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, padding: int, normed: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding)
        if normed:
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.proj(images)
        return norm_channels(self.norm, maps) if hasattr(self, "norm") else maps


class Backbone(nn.Module):
    """Stages of an embedding and blocks, over templates, search region, or both."""

    stages: tuple[nn.ModuleList, ...]  # the blocks; PyTorch does not register a tuple's modules a second time

    def embed(self, stage: int, maps: Tensor, is_search: bool) -> Tensor:
        raise NotImplementedError

    def forward(self, templates: Tensor | None, search: Tensor | None) -> list[Tensor | None]:
        """Templates [b, t, 3, T, T] and search crops [b, 1, 3, S, S] to feature maps with the same first axes."""
        maps = [templates, search]
        for stage, blocks in enumerate(self.stages):
            maps = [
                None if m is None else self.embed(stage, m.flatten(0, 1), which == 1).unflatten(0, m.shape[:2])
                for which, m in enumerate(maps)
            ]
            images = [(0, 0) if m is None else (m.shape[1], m.shape[-1]) for m in maps]
            (count, side), (_, search_side) = images
            part = Part(count, side, search_side)
            streams = [m.permute(0, 1, 3, 4, 2).flatten(1, 3) for m in maps if m is not None]
            tokens = torch.cat(streams, dim=1) if len(streams) > 1 else streams[0]
            for block in blocks:
                tokens = block(tokens, part)
            parts = iter(tokens.split([count * side**2 for count, side in part.images()], dim=1))
            maps = [
                None if m is None else next(parts).unflatten(1, (count, side, side)).permute(0, 1, 4, 2, 3)
                for m, (count, side) in zip(maps, images, strict=True)
            ]
        return maps


class ViTBackbone(Backbone):
    """MixViT: one stage on 16x16 patches."""

    def __init__(self, config: MixFormerConfig, fused: bool, num_classes: int) -> None:
        super().__init__()
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, width))
        self.pos_embed_s = nn.Parameter(torch.zeros(1, config.search_grid**2, width))
        self.pos_embed_t = nn.Parameter(torch.zeros(1, config.template_grid**2, width))
        self.patch_embed = PatchEmbed(3, width, config.patch_size, config.patch_size, 0, normed=False)
        self.blocks = vit_blocks(config.depth, width, config.num_heads, config.mlp_ratio, fused)
        self.stages = (self.blocks,)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def embed(self, stage: int, maps: Tensor, is_search: bool) -> Tensor:
        return _add_positions(self.patch_embed(maps), self.pos_embed_s if is_search else self.pos_embed_t)


class ConvMaeBackbone(Backbone):
    """MixViT with ConvMAE's progressive embedding."""

    def __init__(self, config: MixFormerConfig, fused: bool) -> None:
        super().__init__()
        first, second, width = *config.early_widths, config.width
        self.pos_embed_s = nn.Parameter(torch.zeros(1, config.search_grid**2, width))
        self.pos_embed_t = nn.Parameter(torch.zeros(1, config.template_grid**2, width))
        self.patch_embed1 = PatchEmbed(3, first, 4, 4, 0, normed=True)
        self.patch_embed2 = PatchEmbed(first, second, 2, 2, 0, normed=True)
        self.patch_embed3 = PatchEmbed(second, width, 2, 2, 0, normed=True)
        self.patch_embed4 = nn.Linear(width, width)
        early1, early2 = config.early_depths
        self.blocks1 = nn.Sequential(*(ConvBlock(first, config.mlp_ratio) for _ in range(early1)))
        self.blocks2 = nn.Sequential(*(ConvBlock(second, config.mlp_ratio) for _ in range(early2)))
        self.blocks3 = vit_blocks(config.depth, width, config.num_heads, config.mlp_ratio, fused)
        self.stages = (self.blocks3,)
        self.norm = nn.LayerNorm(width)

    def embed(self, stage: int, maps: Tensor, is_search: bool) -> Tensor:
        maps = self.blocks1(functional.gelu(self.patch_embed1(maps)))
        maps = self.blocks2(functional.gelu(self.patch_embed2(maps)))
        maps = norm_channels(self.patch_embed4, functional.gelu(self.patch_embed3(maps)))
        return _add_positions(maps, self.pos_embed_s if is_search else self.pos_embed_t)


class CvTBackbone(Backbone):
    """MixCvT: three stages, each with an overlapping convolution before it."""

    def __init__(self, config: MixFormerConfig, fused: bool, num_classes: int) -> None:
        super().__init__()
        frozen = config.projection_norm == "frozen"
        widths = (*config.early_widths, config.width)
        depths, heads = (*config.early_depths, config.depth), (*config.early_heads, config.num_heads)
        stages = []
        for stage, (width, depth, num_heads) in enumerate(zip(widths, depths, heads, strict=True)):
            inputs, kernel = (widths[stage - 1], (3, 2, 1)) if stage else (3, (7, 4, 2))
            blocks = nn.ModuleList()
            for _ in range(depth):
                attention = ConvolutionalAttention(width, num_heads, frozen, fused)
                blocks.append(Block(width, attention, Mlp(width, width * config.mlp_ratio, quick=True), EPSILON))
            embedding = PatchEmbed(inputs, width, *kernel, normed=True)
            self.add_module(f"stage{stage}", nn.ModuleDict({"patch_embed": embedding, "blocks": blocks}))
            stages.append(blocks)
        self.stages = tuple(stages)
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_classes)

    def embed(self, stage: int, maps: Tensor, is_search: bool) -> Tensor:
        return self.get_submodule(f"stage{stage}.patch_embed")(maps)


def vit_blocks(depth: int, width: int, num_heads: int, mlp_ratio: int, fused: bool) -> nn.ModuleList:
    return nn.ModuleList(
        Block(width, LinearAttention(width, num_heads, fused), Mlp(width, width * mlp_ratio), VIT_EPSILON)
        for _ in range(depth)
    )


def _add_positions(maps: Tensor, table: Tensor) -> Tensor:
    return maps + table.transpose(1, 2).unflatten(2, maps.shape[2:])


class MixFormerPeer(nn.Module):
    """Backbone, box head, and a score module where the config has one."""

    def __init__(self, config: MixFormerConfig, fused_attention: bool = False, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        if config.backbone == "cvt":
            self.backbone: Backbone = CvTBackbone(config, fused_attention, num_classes)
        elif config.patch_embed == "convmae":
            self.backbone = ConvMaeBackbone(config, fused_attention)
        else:
            self.backbone = ViTBackbone(config, fused_attention, num_classes)
        self.box_head = CornerHead(config)
        self.score_branch = ScoreModule(config.output_width, config.score_heads) if config.score_heads else None
        self.template: Tensor | None = None

    def set_online(self, template: Tensor, online: Tensor) -> None:
        """Encodes a template [b, 3, T, T] and online templates [b, k, 3, T, T]."""
        maps, _ = self.backbone(torch.cat([template[:, None], online], dim=1), None)
        self.template = maps[:, 0].contiguous()

    def forward_test(self, search: Tensor, score_boxes_xyxy: Tensor | None = None) -> Output:
        """One search crop [b, 3, S, S] with the templates of `set_online`; scores those boxes, or its own."""
        _, features = self.backbone(None, search[:, None])
        if self.template is None:
            raise RuntimeError("no template is known: call set_online first")
        return self._read_off(self.template, features[:, 0].contiguous(), score_boxes_xyxy)

    def forward(
        self, template: Tensor, online: Tensor, search: Tensor, score_boxes_xyxy: Tensor | None = None
    ) -> Output:
        """Templates and search crop in one sequence of tokens."""
        templates, features = self.backbone(torch.cat([template[:, None], online], dim=1), search[:, None])
        return self._read_off(templates[:, 0], features[:, 0].contiguous(), score_boxes_xyxy)

    def _read_off(self, template: Tensor, features: Tensor, score_boxes_xyxy: Tensor | None) -> Output:
        boxes, top_left, bottom_right = self.box_head(features)
        score = None
        if self.score_branch is not None:
            score = self.score_branch(features, template, boxes if score_boxes_xyxy is None else score_boxes_xyxy)
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        boxes_cxcywh = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)
        return Output(boxes_cxcywh, top_left, bottom_right, features, score)


def peer_of(config: MixFormerConfig, variables: Mapping[str, Any], fused_attention: bool) -> MixFormerPeer:
    """The peer with our weights."""
    peer = MixFormerPeer(config, fused_attention)
    official = variables_to_official(variables, config)
    peer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in official.items()}, strict=True)
    return peer


def channels_first(images: np.ndarray) -> Tensor:
    """[..., h, w, c] to [..., c, h, w]."""
    return torch.from_numpy(images).movedim(-1, -3).contiguous()
