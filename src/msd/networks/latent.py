"""Stable Diffusion's denoiser as a backbone: diffusers' UNet2DConditionModel, ε-prediction, DDPM's grid of 1000 levels.

The seam speaks of ``x_σ = x0 + σ ε``; DDPM's ``x_t = √ᾱ x0 + √(1−ᾱ) ε`` is that times √ᾱ, with σ² = (1−ᾱ)/ᾱ. So TSM, DM
and ADM are the code that pixel networks use. σ_data is infinite: then EDM's weight λ(σ) is 1/σ², and the fake score's
loss on x0 is the plain mean (ε̂ − ε)², as DMD2 trains it (arXiv 2405.14867). Knows no prompt, no VAE.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from msd.config import TextNetwork
from msd.diffusion.grids import scaled_linear_alphas
from msd.errors import ConfigError
from msd.networks.backbone import Backbone

UNSUPPORTED = {  # diffusers' options under which the network's forward is another than ours
    "addition_embed_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_embedding_act_fn": None,
    "time_cond_proj_dim": None,
    "dual_cross_attention": False,
    "center_input_sample": False,
    "attention_type": "default",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}


class TextUNet(nn.Module):
    """diffusers' UNet in two halves, so that the bottleneck costs the encoder only.

    Args:
        config: of UNet2DConditionModel.

    Raises:
        ConfigError: the configuration asks for a part that Stable Diffusion 1 and 2 do not have.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        odd = [name for name, plain in UNSUPPORTED.items() if config.get(name, plain) != plain]
        if odd:
            raise ConfigError(
                "This UNet has parts that are not supported.",
                where=f"unet: {', '.join(odd)}",
                why="conditions other than the text's hidden states",
                todo="Take a network of the kind of Stable Diffusion 1 or 2.",
            )
        self.unet = UNet2DConditionModel(**config)

    def forward(
        self, x: Tensor, timestep: Tensor, text: Tensor, *, decode: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Latents (B, C, h, w), timesteps (B,), hidden states (B, L, D) → ε (or None), mid block (B, c, h', w')."""
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(timestep).to(x.dtype))
        h = unet.conv_in(x)
        skips = [h]
        for block in unet.down_blocks:
            h, kept = block(hidden_states=h, temb=embedding, **_of_text(block, text))
            skips += kept
        features = h = unet.mid_block(h, embedding, encoder_hidden_states=text)
        if not decode:
            return None, features
        for block in unet.up_blocks:
            count = len(block.resnets)
            kept, skips = tuple(skips[-count:]), skips[:-count]
            size = None if not skips else skips[-1].shape[2:]  # where halving was uneven
            h = block(
                hidden_states=h,
                temb=embedding,
                res_hidden_states_tuple=kept,
                upsample_size=size,
                **_of_text(block, text),
            )
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h))), features


def build_latent(network: TextNetwork, image_shape: tuple[int, int, int], seed: int) -> LatentDenoiser:
    """A freshly initialised denoiser of latents (C, h, w); its weights are a function of ``seed`` alone.

    Raises:
        ConfigError: see ``text_unet``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentDenoiser.of(text_unet(network, image_shape), network, image_shape)


def text_unet(network: TextNetwork, image_shape: tuple[int, int, int]) -> TextUNet:
    """The UNet alone, freshly initialised from torch's global stream.

    Raises:
        ConfigError: diffusers cannot build such a UNet, or it has parts that are not supported.
    """
    channels, _, side = image_shape
    try:
        return TextUNet(network.unet | {"sample_size": side, "in_channels": channels, "out_channels": channels})
    except (TypeError, ValueError, RuntimeError) as e:
        why = str(e).split("\n")[0]
        raise ConfigError("diffusers cannot build this UNet.", where="unet", why=why) from None


def _of_text(block: nn.Module, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


class LatentDenoiser(Backbone):
    """A text-conditional denoiser of latents. A condition is the text encoder's hidden states, (L, D).

    Args:
        model: the UNet.
        image_shape: (C, h, w) of the latents.
        text_shape: (L, D) of the hidden states.
        schedule: ``config.Schedule`` as plain values.

    Attributes:
        empty: (L, D) hidden states of the empty prompt; classifier-free guidance compares with it.
    """

    model: TextUNet
    empty: Tensor
    alphas: Tensor

    def __init__(
        self,
        model: TextUNet,
        *,
        image_shape: tuple[int, int, int],
        text_shape: tuple[int, int],
        schedule: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.image_shape, self.text_shape = model, image_shape, text_shape
        self.num_conditions, self.sigma_data = 0, math.inf
        alphas = scaled_linear_alphas(**schedule)
        self.register_buffer("alphas", alphas.double(), persistent=False)
        self.register_buffer("noise_grid", ((1 - self.alphas) / self.alphas).sqrt().float(), persistent=False)
        self.register_buffer("empty", torch.zeros(text_shape))
        self.known_sigmas = (float(self.noise_grid[0]), float(self.noise_grid[-1]))

    @classmethod
    def of(cls, model: TextUNet, network: TextNetwork, image_shape: tuple[int, int, int]) -> LatentDenoiser:
        """The denoiser around a UNet that was built from the description ``network``."""
        schedule = network.schedule.model_dump()
        net = cls(model, image_shape=image_shape, text_shape=network.text_shape, schedule=schedule)
        net.description = {
            "network": network.model_dump(mode="json", exclude_defaults=True),
            "image_shape": list(image_shape),
            "num_conditions": 0,
        }
        return net

    @property
    def condition_shape(self) -> tuple[int, ...]:
        return self.text_shape

    @property
    def is_conditional(self) -> bool:
        return True

    @property
    def has_unconditional(self) -> bool:
        return True  # the empty prompt

    @property
    def blocks(self) -> list[nn.Module]:
        unet = self.model.unet
        levels = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        return [piece for level in levels for kind in ("resnets", "attentions") for piece in getattr(level, kind, ())]

    def set_recompute(self, on: bool) -> None:
        if on:
            self.model.unet.enable_gradient_checkpointing()
        else:
            self.model.unet.disable_gradient_checkpointing()

    @property
    def student_level(self) -> float:
        return self.known_sigmas[1]

    def forward(self, x: Tensor, sigma: Tensor | float, text: Tensor | None = None) -> Tensor:
        """The denoised latents; without ``text`` (B, L, D) those of the empty prompt."""
        level = torch.as_tensor(sigma, device=x.device)
        return self.denoise_unconditional(x, level) if text is None else self.denoise(x, level, text)

    @property
    def features_shape(self) -> tuple[int, int]:
        unet = self.model.unet.config
        halvings = len(unet.block_out_channels) - 1
        return unet.block_out_channels[-1], -(-self.image_shape[-1] // 2**halvings)  # an odd side is rounded up

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.noise_grid[self.timestep(sigma)].to(sigma.dtype)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Index of the nearest level, int64, of σ's shape."""
        distance = (sigma.flatten().float()[:, None] - self.noise_grid[None]).abs()
        return distance.argmin(dim=1).reshape(sigma.shape)

    def denoise(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        return self.denoise_with_features(x, level, cond)[0]

    def denoise_unconditional(self, x: Tensor, level: Tensor) -> Tensor:
        return self.denoise(x, level, self.empty.expand(len(x), -1, -1))

    def denoise_with_features(self, x: Tensor, level: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        t = self._timesteps(x, level)
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        return self._x0((alpha.sqrt() * x).float(), t, cond)

    def features(self, x: Tensor, level: Tensor, cond: Tensor) -> Tensor:
        t = self._timesteps(x, level)
        return self._run((self.alphas[t].reshape(-1, 1, 1, 1).sqrt() * x).float(), t, cond, decode=False)[1]

    def generate(self, noise: Tensor, cond: Tensor) -> Tensor:
        """One step at the last timestep, whose input is the noise itself (DMD2). NFE 1."""
        last = torch.full((len(noise),), len(self.alphas) - 1, device=noise.device)
        return self._x0(noise.float(), last, cond)[0]

    def visible(self, x: Tensor) -> Tensor:
        """The mean of the latents' channels: shapes can be told, no more."""
        return x.mean(dim=1, keepdim=True)

    def condition_embeddings(self) -> Tensor:
        raise ConfigError("A text-conditional network has no table of conditions.", todo="Split prompts instead.")

    def _timesteps(self, x: Tensor, level: Tensor) -> Tensor:
        return self.timestep(torch.as_tensor(level, device=x.device).reshape(-1)).expand(len(x))

    def _x0(self, x_t: Tensor, t: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """x0 = (x_t − √(1−ᾱ) ε) / √ᾱ, in float64 as the reference does it: at the last levels √ᾱ is small."""
        epsilon, features = self._run(x_t, t, cond)
        assert epsilon is not None
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        return ((x_t - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()).float(), features

    def _run(self, x_t: Tensor, t: Tensor, cond: Tensor, *, decode: bool = True) -> tuple[Tensor | None, Tensor]:
        with torch.autocast(x_t.device.type, self.autocast) if self.autocast else nullcontext():
            return self.model(x_t, t, cond.float(), decode=decode)
