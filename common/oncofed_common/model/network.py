"""What is the network?

MONAI's ``DiffusionModelUNet`` on patches of 2 x 2 x 2 voxels: given the noised change and the
conditions it states the expected clean change (data prediction). The conditions enter three ways:
as features beside the noised field, as tokens in cross-attention at the coarsest level, and, summed
up, in the embedding that every residual block adds. The part that does not depend on the noised
field is computed once for a forecast and shared by all its steps and samples.

Where the preset has physics, what it expects and the noised field itself are added to the answer in
shares that depend on time: the network begins as "physics is right" and learns what physics does not
know. Where physics is missing its share is of nothing.

Patches: most of the cost of a 3-D network lies at its finest level, and distances are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from oncofed_common.model.prepare import (
    EXPECTED_MAPS,
    EXPECTED_REGIONS,
    FIELDS,
    condition_channels,
)
from oncofed_common.model.presets import Preset
from oncofed_common.model.tokens import FEATURES, token_rows


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the conditions say, ready for every step."""

    features: Float[Tensor, "row width i j k"]
    tokens: Float[Tensor, "row token context"]
    embedding: Float[Tensor, "row embedding"]
    expected: Float[Tensor, "row region x y z"]


class Network(nn.Module):
    """``(noised, time, context) -> clean``; time runs from 0 (clean) to 1 (noise).

    Args:
        preset: sizes of everything.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        cells = preset.patch**3
        width, context = preset.widths[0], preset.context_width
        embedding = 4 * width
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=cells * FIELDS,
            out_channels=cells * FIELDS,
            num_res_blocks=1,
            channels=preset.widths,
            attention_levels=(*(False for _ in preset.widths[1:]), True),
            norm_num_groups=preset.groups,
            with_conditioning=True,
            cross_attention_dim=context,
            num_head_channels=preset.head_width,
            use_flash_attention=True,
        )
        self.see = nn.Sequential(
            nn.Conv3d(cells * condition_channels(preset), 2 * width, kernel_size=1),
            nn.GroupNorm(preset.groups, 2 * width),
            nn.SiLU(),
            nn.Conv3d(2 * width, width, kernel_size=1),
        )
        self.rows = nn.ModuleList([nn.Linear(FEATURES, context) for _ in range(token_rows(preset))])
        self.read = nn.Sequential(nn.SiLU(), nn.Linear(context, context), nn.LayerNorm(context))
        self.sum_up = nn.Sequential(
            nn.Linear(token_rows(preset) * context, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.shares = _shares(embedding) if preset.physics else None

    def context(
        self,
        conditions: Float[Tensor, "row condition x y z"],
        tokens: Float[Tensor, "row token feature"],
    ) -> Context:
        """The part of the computation that no step repeats."""
        rows = [layer(tokens[:, number]) for number, layer in enumerate(self.rows)]
        read = self.read(torch.stack(rows, dim=1))
        return Context(
            features=self.see(_to_patches(conditions, self.preset.patch)),
            tokens=read,
            embedding=self.sum_up(read.flatten(1)),
            expected=self._expected(conditions),
        )

    def _expected(
        self, conditions: Float[Tensor, "row condition x y z"]
    ) -> Float[Tensor, "row region x y z"]:
        if not self.preset.physics:
            return conditions[:, :0]
        return conditions[:, -EXPECTED_MAPS:][:, : len(EXPECTED_REGIONS)]

    def forward(
        self,
        noised: Float[Tensor, "row field x y z"],
        time: Float[Tensor, " row"],
        context: Context,
    ) -> Float[Tensor, "row field x y z"]:
        """The expected clean change; a context of one row serves every row of ``noised``."""
        unet, count = self.unet, len(noised)
        steps = get_timestep_embedding(1000.0 * time, unet.block_out_channels[0])
        embedding = unet.time_embed(steps.to(noised.dtype)) + context.embedding
        embedding = embedding.expand(count, -1)
        tokens = context.tokens.expand(count, -1, -1)
        hidden = unet.conv_in(_to_patches(noised, self.preset.patch)) + context.features
        kept = [hidden]
        for down in unet.down_blocks:
            hidden, outputs = down(hidden_states=hidden, temb=embedding, context=tokens)
            kept.extend(outputs)
        hidden = unet.middle_block(hidden_states=hidden, temb=embedding, context=tokens)
        for up in unet.up_blocks:
            taken = [kept.pop() for _ in up.resnets][::-1]
            hidden = up(
                hidden_states=hidden, res_hidden_states_list=taken, temb=embedding, context=tokens
            )
        learned = _from_patches(unet.out(hidden), self.preset.patch)
        if self.shares is None:
            return learned
        shares = self.shares(nn.functional.silu(embedding))[..., None, None, None]
        of_physics, of_noised = shares.split([len(EXPECTED_REGIONS), FIELDS], dim=1)
        answer = learned + of_noised * noised
        rest = FIELDS - len(EXPECTED_REGIONS)
        known = nn.functional.pad(of_physics * context.expected, (0, 0) * 3 + (0, rest))
        whole: Tensor = answer + known
        return whole


def _shares(embedding: int) -> nn.Linear:
    """How much of what physics expects, and of each noised channel, is in the answer: first all, and none."""
    layer = nn.Linear(embedding, len(EXPECTED_REGIONS) + FIELDS)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.zero_()[: len(EXPECTED_REGIONS)] = 1.0
    return layer


def build(preset: Preset, *, seed: int) -> Network:
    """A fresh network; the same seed gives the same weights. No global random state changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(preset)


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights lie, and with them its work."""
    return next(network.parameters()).device


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype() -> torch.dtype:
    """bfloat16 where the best device multiplies it natively, else float32."""
    if best_device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def _to_patches(
    fields: Float[Tensor, "row channel x y z"], patch: int
) -> Float[Tensor, "row patchchannel i j k"]:
    rows, channels, x, y, z = fields.shape
    cut = fields.reshape(rows, channels, x // patch, patch, y // patch, patch, z // patch, patch)
    moved = cut.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return moved.reshape(rows, channels * patch**3, x // patch, y // patch, z // patch)


def _from_patches(
    patches: Float[Tensor, "row patchchannel i j k"], patch: int
) -> Float[Tensor, "row channel x y z"]:
    rows, channels, i, j, k = patches.shape
    cut = patches.reshape(rows, channels // patch**3, patch, patch, patch, i, j, k)
    moved = cut.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return moved.reshape(rows, channels // patch**3, i * patch, j * patch, k * patch)
