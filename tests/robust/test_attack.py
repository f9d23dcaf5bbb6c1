"""A real attack: foolbox's projected gradient descent in L2, against the module and against a small CNN.

Both get the same images, steps and budget. The CNN has no noise; the engine judges the diffusion classifier under noise
that the attack never saw.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import fastdc
from fastdc.data import digits_test

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from digits_cnn import accuracy, train_cnn, training_digits
from fastdc.robust import as_module

IMAGES = 40
EPSILON = 0.5  # L2, pixels in [0, 1]; the nearest digit of another class is about 1.9 away
STEPS = 20


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: networks this small are slower on several threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attack(foolbox: Any, module: "torch.nn.Module", images: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Images within EPSILON of the given ones that raise the cross-entropy of the module's logits."""
    model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    method = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=STEPS, rel_stepsize=2.5 / STEPS, random_start=False)
    _, adversarial, _ = method(model, images, labels, epsilons=EPSILON)
    found: torch.Tensor = adversarial
    distance = (found - images).flatten(1).norm(dim=1)
    assert distance.max() < EPSILON + 1e-4
    assert distance.mean() > 0.9 * EPSILON, "the attack must use its budget"
    assert found.min() >= 0
    assert found.max() <= 1
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_diffusion_classifier_withstands_an_attack_that_the_cnn_does_not(tmp_path: Path) -> None:
    foolbox = pytest.importorskip("foolbox")
    pytest.importorskip("sklearn")
    test = digits_test()
    images = torch.from_numpy(test.images / np.float32(255))
    labels = torch.from_numpy(test.labels)
    cnn = train_cnn(training_digits(tmp_path))
    assert accuracy(cnn, images, labels) > 0.98
    few, truth = images[:IMAGES], labels[:IMAGES]
    against_cnn = accuracy(cnn, attack(foolbox, cnn, few, truth), truth)

    clf = fastdc.load("digits-mlp", backend="torch")
    module = as_module(clf, draws=8)
    assert accuracy(module, few, truth) > 0.95
    adversarial = attack(foolbox, module, few, truth)
    judged = clf.errors(adversarial, draws=64, seed=99).errors.mean(axis=2).argmin(axis=1)
    withstood = float(np.mean(judged == truth.numpy()))
    assert withstood < 0.95, "an attack without effect would prove nothing"
    # Measured: 0.78 against 0.50.
    assert withstood > against_cnn + 0.15
