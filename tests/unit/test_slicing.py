"""Initial weights cut out of a larger network."""

from __future__ import annotations

import torch
from tiny import network

from msd.networks.slicing import slice_into


def test_same_architecture_becomes_a_copy() -> None:
    small, large = network(1), network(2)
    assert slice_into(small, large) == large.num_parameters
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), large.parameters(), strict=True))


def test_smaller_network_gets_the_leading_entries() -> None:
    small, large = network(1, model_channels=4), network(2)
    before = {name: p.clone() for name, p in small.named_parameters()}
    assert slice_into(small, large) == small.num_parameters
    sources = dict(large.named_parameters())
    for name, p in small.named_parameters():
        assert torch.equal(p, sources[name][tuple(slice(n) for n in p.shape)])
    assert any(not torch.equal(p, before[name]) for name, p in small.named_parameters())


def test_what_the_larger_network_lacks_stays() -> None:
    small, large = network(1, num_blocks=2), network(2)
    before = {name: p.clone() for name, p in small.named_parameters()}
    count = slice_into(small, large)
    assert 0 < count < small.num_parameters
    names = dict(large.named_parameters())
    for name, p in small.named_parameters():
        if name not in names:
            assert torch.equal(p, before[name]), name
