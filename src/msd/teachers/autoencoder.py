"""Training of a small autoencoder, for miniature text-to-image models."""

from __future__ import annotations

import copy
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from msd.config import Compute
from msd.config.text import AutoencoderTraining, TinyAutoencoder
from msd.data.archive import TrainingImages, open_half
from msd.draws import BatchDraws, Draws, stream_seed
from msd.latent.autoencoder import architecture, build_autoencoder
from msd.networks.files import write_safetensors
from msd.plan import Node
from msd.store import Manifest
from msd.training.ema import averages_of
from msd.training.engine import Progress, resolve_device
from msd.training.job import Job, draws_of_process, run_job
from msd.training.step import Step, Terms, Updater

AUTOENCODER_FORMAT = "msd-autoencoder-1"


class AutoencoderStep(Step):
    """One update: mean squared error and a little of the posterior's divergence from unit noise (arXiv 1312.6114).

    Args:
        net: diffusers' AutoencoderKL, trained.
        data: the training half.
        settings: loss, optimiser and EMA.
        draws: random streams.
    """

    def __init__(self, net: AutoencoderKL, data: TrainingImages, settings: AutoencoderTraining, draws: Draws) -> None:
        self.net: AutoencoderKL = net.train().requires_grad_(True)
        self.data, self.settings, self.draws = data, settings, draws
        self.batch_size = settings.batch_size
        self.updaters = {"": Updater(net, settings.optimizer)}
        self.emas = averages_of(net, settings, "weights")

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def __call__(self, start: int) -> dict[str, Tensor]:
        return self.update_by(start, self._terms)

    def _terms(self, draws: BatchDraws) -> Terms:
        x, _ = self.fetch(self.data, draws.integers("data", 0, len(self.data)), draws)
        posterior = self.net.encode(x).latent_dist
        z = posterior.mean + posterior.std * draws.normal("posterior", tuple(posterior.mean.shape[1:]))
        error = (self.net.decode(z).sample.float() - x).square().mean()
        divergence = posterior.kl().mean() / z[0].numel()
        terms = {"error": error, "divergence": self.settings.kl_weight * divergence}
        return terms, {"squared_error": error, "kl_divergence": divergence}


def train_autoencoder(node: Node, compute: Compute, progress: Progress) -> Manifest:
    """Train the autoencoder on the training half."""
    data = open_half(Manifest.read(node.inputs["data"].manifest), "train")
    tiny = TinyAutoencoder.model_validate(node.settings)
    net, device = build_autoencoder(tiny, data.image_shape[0]), resolve_device(compute.device)
    description = architecture(tiny, data.image_shape[0])

    def make_step(micro_batch: int | None) -> AutoencoderStep:
        draws = draws_of_process(stream_seed(tiny.seed, "autoencoder", 0), device, micro_batch)
        fresh = copy.deepcopy(net)
        nn.Module.to(fresh, device)
        return AutoencoderStep(fresh, data, tiny.training, draws)

    def save(_: nn.Module, path: Path, state: dict[str, Tensor]) -> None:
        write_safetensors(path, state, AUTOENCODER_FORMAT, description)

    job = Job(
        node=node,
        identity={**node.settings, "data": data.sha256, "train_images": len(data)},
        images=tiny.training.images,
        batch_size=tiny.training.batch_size,
        make_step=make_step,
        save=save,
        results={"parameters": sum(p.numel() for p in net.parameters())},
    )
    return run_job(job, compute, progress)
