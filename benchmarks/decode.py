"""How long a picture takes to decode, by Stable Diffusion's autoencoder and by a tiny one.

    python benchmarks/decode.py

Both with random weights, as their values do not matter for speed: AutoencoderKL as Stable Diffusion 1 and 2 have it,
AutoencoderTiny as TAESD has it. Prints a table in Markdown; ``docs/benchmarks.md`` holds one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from msd.config import TextNetwork
from msd.latent.autoencoder import Autoencoder
from msd.latent.tiny_decoder import TinyDecoder
from msd.networks.published import LATENT_CHANNELS, LATENT_FACTOR, SD15
from msd.networks.summary import network_cost
from msd.training.engine import resolve_device
from msd.training.ledger import counted_flops

STABLE_DIFFUSION = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def milliseconds(decoder: Autoencoder | TinyDecoder, latents: Tensor, repeats: int) -> tuple[list[float], list[float]]:
    """Of each picture after a first one, by the clock and of the CPU."""
    clock, cpu = [], []
    for i in range(repeats + 1):
        began, before = time.perf_counter(), time.process_time()
        decoder.decode(latents).cpu()  # .cpu() waits for the device
        if i:
            clock.append(1000 * (time.perf_counter() - began))
            cpu.append(1000 * (time.process_time() - before))
    return clock, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512, help="pixels of the picture (512)")
    parser.add_argument("--repeats", type=int, default=5, help="timed pictures after a first one (5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, side = resolve_device(arguments.device), arguments.side // LATENT_FACTOR
    latents = torch.randn(1, LATENT_CHANNELS, side, side, device=device)
    unet = network_cost(TextNetwork.model_validate(SD15), (LATENT_CHANNELS, side, side), 0)
    print(f"One evaluation of the UNet: {unet.gflop:,.0f} GFLOP.\n")
    print("| decoder | parameters | GFLOP | ms | ms, least – most | CPU ms |\n|:--|--:|--:|--:|--:|--:|", flush=True)
    full = AutoencoderKL(**STABLE_DIFFUSION)
    decoders = {"AutoencoderTiny": TinyDecoder(AutoencoderTiny(), device), "AutoencoderKL": Autoencoder(full, device)}
    used = {"AutoencoderTiny": decoders["AutoencoderTiny"].net, "AutoencoderKL": full.decoder}
    for name, decoder in decoders.items():
        parameters = sum(p.numel() for p in used[name].parameters())
        with counted_flops() as counter:
            decoder.decode(latents)
        clock, cpu = milliseconds(decoder, latents, arguments.repeats)
        print(
            f"| {name} | {parameters / 1e6:.1f} M | {counter.flops / 1e9:,.0f} | {statistics.median(clock):,.0f} | "
            f"{min(clock):,.0f} – {max(clock):,.0f} | {statistics.median(cpu):,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
