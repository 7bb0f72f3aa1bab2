"""Networks of the reference cases, built from EDM's init arguments through the same path as a pickle's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rule import fill

from msd.networks.edm_arguments import describe
from msd.networks.files import build_network
from msd.networks.precond import Preconditioned

FOLDER = Path(__file__).parent / "edm"
INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())


def build(case: str) -> Preconditioned:
    """The network of a case, with weights by the rule, in eval mode."""
    entry = INDEX[case]
    network, image_shape, classes = describe(entry["preconditioning"], (), entry["init_kwargs"])
    net = build_network(network, image_shape=image_shape, num_conditions=classes, seed=0)
    fill(net, entry["seed"])
    return net.eval()
