"""Networks behind one seam (``Backbone``), their files, and discriminator heads."""

from msd.networks.backbone import Backbone
from msd.networks.files import load_network, save_network
from msd.networks.precond import Preconditioned
from msd.networks.teacher import sample_teacher

__all__ = ["Backbone", "Preconditioned", "load_network", "sample_teacher", "save_network"]
