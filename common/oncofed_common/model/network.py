"""What is the network?

MONAI's ``DiffusionModelUNet`` on patches of 2 x 2 x 2 voxels: given the noised change and the
conditions it states the expected clean change (data prediction). The conditions enter four ways:
as a prior (``prior``), as features beside the noised field (which the tokens scale and shift), as tokens in
cross-attention at the coarsest level, and, summed up, in the embedding that every residual block adds. The
part that does not depend on the noised field is computed once for a forecast and shared by all its steps and
samples.

Patches: most of the cost of a 3-D network lies at its finest level, and distances are smooth. With
``spatial_dims`` 2 the network takes every axial slice as a row of its own; prior and noise stay
three-dimensional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oncofed_common.model.modulation import FiLM, with_updates
from oncofed_common.model.prepare import FIELDS, condition_channels
from oncofed_common.model.presets import Preset
from oncofed_common.model.prior import FOLLOWS, Prior
from oncofed_common.model.tokens import FEATURES, TOKENS

SEEN = len(FOLLOWS)
"""Of so many regions the network is shown how sure the prior is."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the conditions say, ready for every step."""

    features: Float[Tensor, "row width i j k"]
    tokens: Float[Tensor, "row token context"]
    embedding: Float[Tensor, "row embedding"]
    expected: Float[Tensor, "row field x y z"]
    spread: Float[Tensor, "row field x y z"]

    def whitened(
        self, noised: Float[Tensor, "row field x y z"], angle: Float[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row field x y z"], ...]:
        """The noised field as multiples of what the prior lets it vary; cos(b) and sin(b) of every voxel.

        The angles b are those of ``path.Whitened``: with z = (x - expected) / spread the whitened field is
        cos(b) z + sin(b) noise.
        """
        keep, add = (part[:, None, None, None, None] for part in (angle.cos(), angle.sin()))
        varies = torch.hypot(keep * self.spread, add)
        return (noised - keep * self.expected) / varies, keep * self.spread / varies, add / varies

    def implied(
        self, noised: Float[Tensor, "row field x y z"], angle: Float[Tensor, " row"]
    ) -> Float[Tensor, "row field x y z"]:
        """The clean field that the prior and the noised one imply together: a fresh network's answer."""
        whitened, cosine, _ = self.whitened(noised, angle)
        return self.expected + self.spread * cosine * whitened


class Network(nn.Module):
    """``(noised, angle, context) -> clean``, with ``noised = cos(angle) clean + sin(angle) noise``.

    Args:
        preset: sizes of everything.

    Attributes:
        widening: by how much stronger the noise that futures begin with is, in what the window has in
            common: what the network is too sure of, measured after training.
    """

    widening: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        cells = preset.patch**preset.spatial_dims
        width, context = preset.widths[0], preset.context_width
        embedding = 4 * width
        self.unet = DiffusionModelUNet(
            spatial_dims=preset.spatial_dims,
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
        with_updates(self.unet)
        self.see = nn.Sequential(
            nn.Conv3d(cells * (condition_channels(preset) + SEEN), 2 * width, kernel_size=1),
            nn.GroupNorm(preset.groups, 2 * width),
            nn.SiLU(),
            nn.Conv3d(2 * width, width, kernel_size=1),
        )
        self.rows = nn.ModuleList([nn.Linear(FEATURES, context) for _ in range(TOKENS)])
        self.read = nn.Sequential(nn.SiLU(), nn.Linear(context, context), nn.LayerNorm(context))
        self.sum_up = nn.Sequential(
            nn.Linear(TOKENS * context, 3 * width),
            nn.SiLU(),
            nn.Linear(3 * width, embedding),
        )
        self.film = FiLM(context, width)
        self.prior = Prior(preset.distance_gain)
        self.register_buffer("widening", torch.ones(()))

    def context(
        self,
        conditions: Float[Tensor, "row condition x y z"],
        tokens: Float[Tensor, "row token feature"],
    ) -> Context:
        """The part of the computation that no step repeats."""
        rows = [layer(tokens[:, number]) for number, layer in enumerate(self.rows)]
        read = self.read(torch.stack(rows, dim=1))
        expected, spread = self.prior(conditions, tokens)
        told = torch.cat([conditions, spread[:, :SEEN].detach().log()], dim=1)
        return Context(
            features=self.film(self.see(self._cut(told)), read.mean(dim=1)),
            tokens=read,
            embedding=self.sum_up(read.flatten(1)),
            expected=expected,
            spread=spread,
        )

    def forward(
        self,
        noised: Float[Tensor, "row field x y z"],
        angle: Float[Tensor, " row"],
        context: Context,
    ) -> Float[Tensor, "row field x y z"]:
        """The expected clean change; a context of one row serves every row of ``noised``.

        The network proper sees the whitened field and states by how much z differs from what it implies,
        over sin(b)^2: so wherever it foresees a shift of z, whatever the noise, it has the same to say.
        """
        whitened, cosine, sine = context.whitened(noised, angle)
        learned = self._learned(whitened, angle, context)
        return context.expected + context.spread * (cosine * whitened + sine.square() * learned)

    def _learned(
        self,
        whitened: Float[Tensor, "row field x y z"],
        angle: Float[Tensor, " row"],
        context: Context,
    ) -> Float[Tensor, "row field x y z"]:
        unet, flat = self.unet, self.preset.spatial_dims == 2
        steps = get_timestep_embedding(2000.0 / math.pi * angle, unet.block_out_channels[0])
        embedding = unet.time_embed(steps.to(whitened.dtype)) + context.embedding
        embedding = embedding.expand(len(whitened), -1)
        tokens = context.tokens.expand(len(whitened), -1, -1)
        seen = self._cut(whitened)
        features = context.features.expand(len(whitened), -1, -1, -1, -1)
        slices = seen.shape[-1]
        if flat:
            seen, features = _as_rows(seen), _as_rows(features)
            embedding = embedding.repeat_interleave(slices, dim=0)
            tokens = tokens.repeat_interleave(slices, dim=0)
        hidden = unet.conv_in(seen) + features
        kept = [hidden]
        for down in unet.down_blocks:
            hidden, outputs = self._run(down, hidden_states=hidden, temb=embedding, context=tokens)
            kept.extend(outputs)
        hidden = self._run(unet.middle_block, hidden_states=hidden, temb=embedding, context=tokens)
        for up in unet.up_blocks:
            taken = [kept.pop() for _ in up.resnets][::-1]
            hidden = self._run(
                up,
                hidden_states=hidden,
                res_hidden_states_list=taken,
                temb=embedding,
                context=tokens,
            )
        answer = unet.out(hidden)
        return self._joined(_as_slices(answer, slices) if flat else answer)

    def _run(
        self, block: nn.Module, **inputs: Any
    ) -> Any:  # a MONAI block: tensors and lists of them
        if self.preset.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, use_reentrant=False, **inputs)
        return block(**inputs)

    def _cut(
        self, fields: Float[Tensor, "row channel x y z"]
    ) -> Float[Tensor, "row patchchannel i j k"]:
        return _to_patches(fields, self._patch)

    def _joined(
        self, patches: Float[Tensor, "row patchchannel i j k"]
    ) -> Float[Tensor, "row channel x y z"]:
        return _from_patches(patches, self._patch)

    @property
    def _patch(self) -> tuple[int, int, int]:
        edge = self.preset.patch
        return (edge, edge, edge if self.preset.spatial_dims == 3 else 1)


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
    fields: Float[Tensor, "row channel x y z"], patch: tuple[int, int, int]
) -> Float[Tensor, "row patchchannel i j k"]:
    rows, channels, x, y, z = fields.shape
    a, b, c = patch
    cut = fields.reshape(rows, channels, x // a, a, y // b, b, z // c, c)
    moved = cut.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return moved.reshape(rows, channels * a * b * c, x // a, y // b, z // c)


def _from_patches(
    patches: Float[Tensor, "row patchchannel i j k"], patch: tuple[int, int, int]
) -> Float[Tensor, "row channel x y z"]:
    rows, channels, i, j, k = patches.shape
    a, b, c = patch
    cut = patches.reshape(rows, channels // (a * b * c), a, b, c, i, j, k)
    moved = cut.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return moved.reshape(rows, channels // (a * b * c), i * a, j * b, k * c)


def _as_rows(fields: Float[Tensor, "row channel i j k"]) -> Float[Tensor, "slice channel i j"]:
    """Every axial slice as a row of its own."""
    return fields.movedim(-1, 1).flatten(0, 1)


def _as_slices(
    slices: Float[Tensor, "slice channel i j"], each: int
) -> Float[Tensor, "row channel i j k"]:
    return slices.reshape(-1, each, *slices.shape[1:]).movedim(1, -1)
