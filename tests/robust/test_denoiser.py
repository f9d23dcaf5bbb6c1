"""The network as a module for gradients: shared weights, an untouched original, and the backends that are refused."""

from typing import TYPE_CHECKING, Any

import pytest

from fastdc import BackendError
from helpers.worlds import classifier, fails_with, gaussian

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from fastdc.robust.denoiser import denoiser_of, place_of
from helpers.torch_worlds import on_torch, tiny_mlp, tiny_model


def test_the_denoiser_shares_weights_and_leaves_the_network_alone() -> None:
    clf = on_torch(tiny_model(), tiny_mlp())
    module: Any = clf.network
    original = module.module.train()
    copied = denoiser_of(clf)
    pairs = list(zip(original.parameters(), copied.parameters(), strict=True))
    assert len(pairs) > 5
    for ours, theirs in pairs:
        assert ours.data_ptr() == theirs.data_ptr()
        assert ours.requires_grad
        assert not theirs.requires_grad
    assert original.training
    assert not copied.training
    copied.double()
    assert place_of(copied)[1] == torch.float64
    assert place_of(original)[1] == torch.float32


def test_a_network_without_weights_has_the_place_it_is_told() -> None:
    assert place_of(torch.nn.Identity(), "meta") == (torch.device("meta"), torch.float32)


def test_other_backends_are_refused() -> None:
    fails_with(lambda: denoiser_of(classifier(gaussian())), "torch", "function", kind=BackendError)
