"""Robust accuracy: the share of images that withstand gradient attacks, for diffusion classifiers and two small CNNs.

    python bench/robust.py [--images 100] [--eps 0.5 0.75]

Attacks are foolbox's L2 projected gradient descent without a random start, on the cross-entropy and on the margin of
the logits, with pixels in [0, 1]. They attack ``robust.as_module`` of `digits-mlp` at 8 draws, with and without
likelihood maximisation, and the CNNs. All classes at 64 draws judge a diffusion classifier's images, with another seed
of the noise and of the likelihood maximisation. An image counts if it is classified correctly before the attacks and
withstands every attack of its row. Needs foolbox and scikit-learn.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import fastdc
from common import parser, print_table, save
from digits_cnn import train_cnn, training_digits
from fastdc.data import digits_test
from fastdc.robust import LikelihoodMaximization, ReleasedMaximization, as_module, maximize_likelihood
from fastdc.support import require
from tables import announced, first_images

STEPS, DRAWS = 20, 8
JUDGE_DRAWS, JUDGE_SEED = 64, 99
SEEDS = (1, 2, 3, 4)  # seeds over which an attack on likelihood maximisation averages

Answer = Callable[[Tensor], npt.NDArray[np.int64]]


class Averaged(nn.Module):
    """The mean of modules' logits: an attack through it follows their average gradient."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([module(images) for module in self.members]).mean(0)


@dataclass(frozen=True)
class Row:
    """A classifier and its attacks.

    Attributes:
        name: Name of the classifier.
        attacks: The attacks in words.
        answer: The labels that the classifier gives to images (n, c, h, w) in [0, 1].
        modules: The attacked modules, each with the attack's loss, "cross-entropy" or "margin".
        transferred: Names of earlier rows whose adversarial images are tried, too.
    """

    name: str
    attacks: str
    answer: Answer
    modules: tuple[tuple[nn.Module, str], ...]
    transferred: tuple[str, ...] = ()


def attack(module: nn.Module, loss: str, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images within `eps` of the given ones; `loss` is "cross-entropy" or "margin"."""
    foolbox, eagerpy = require("foolbox", extra="dev"), require("eagerpy", extra="dev")

    class Margin(foolbox.attacks.L2ProjectedGradientDescentAttack):  # type: ignore[misc, name-defined]
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            truth = labels.raw[:, None]

            def margin(inputs: Any) -> Any:
                logits = model(inputs).raw
                others = logits.scatter(1, truth, -torch.inf).amax(1)
                return eagerpy.astensor((others - logits.gather(1, truth)[:, 0]).sum())

            return margin

    kind = Margin if loss == "margin" else foolbox.attacks.L2ProjectedGradientDescentAttack
    method = kind(steps=STEPS, rel_stepsize=2.5 / STEPS, random_start=False)
    _, found, _ = method(foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu"), images, labels, epsilons=eps)
    result: Tensor = found
    return result


def rows_of(folder: Path) -> list[Row]:
    """The classifiers, trained or loaded."""
    train = training_digits(folder)
    clf = fastdc.load("digits-mlp", backend="torch")
    losses = ("cross-entropy", "margin")
    plain = as_module(clf, draws=DRAWS)

    def judged(images: Any) -> npt.NDArray[np.int64]:
        errors = clf.errors(images, draws=JUDGE_DRAWS, seed=JUDGE_SEED).errors
        return np.asarray(errors.mean(axis=2).argmin(axis=1))

    rows = []
    for name, noise in (("CNN", 0.0), ("CNN trained with noise 0.25", 0.25)):
        cnn = train_cnn(train, noise=noise)

        def of_cnn(images: Tensor, cnn: nn.Module = cnn) -> npt.NDArray[np.int64]:
            with torch.no_grad():
                return np.asarray(cnn(images).argmax(1).numpy())

        rows.append(Row(name, "cross-entropy, margin", of_cnn, tuple((cnn, loss) for loss in losses)))
    dc = "diffusion classifier"
    rows.append(Row(dc, "cross-entropy, margin", judged, tuple((plain, loss) for loss in losses)))
    for name, how in (("paper", LikelihoodMaximization), ("rdc", ReleasedMaximization)):

        def moved(images: Any, how: Any = how) -> npt.NDArray[np.int64]:
            return judged(maximize_likelihood(clf, images, method=how(seed=JUDGE_SEED)))

        def module(gradient: str, seed: int = 0, how: Any = how) -> nn.Module:
            return as_module(
                clf, draws=DRAWS, seed=seed, likelihood_maximization=how(seed=seed), likelihood_gradient=gradient
            )

        identity = tuple((module("identity"), loss) for loss in losses)
        exact = tuple((module("exact"), loss) for loss in losses)
        average = Averaged([module("exact", seed) for seed in SEEDS]).eval()
        title = f'+ likelihood maximisation, "{name}"'
        rows.append(Row(title, "identity, both; those on the row without it", moved, identity, (dc,)))
        rows.append(Row(title, "exact, both; cross-entropy over 4 seeds", moved, (*exact, (average, "cross-entropy"))))
    return rows


def main() -> None:
    made = parser(__doc__, "robust")
    made.add_argument("--images", type=int, default=100, help="number of test images [%(default)s]")
    made.add_argument("--eps", type=float, nargs="+", default=[0.5, 0.75], help="L2 budgets of attacks [%(default)s]")
    made.add_argument("--threads", type=int, default=1, help="number of torch threads [%(default)s]")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    test = first_images(digits_test(), arguments.images)
    images = torch.from_numpy(test.images / np.float32(255))
    labels = torch.from_numpy(test.labels)
    records: list[dict[str, Any]] = []
    adversarial: dict[tuple[str, float], list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder))
    for row in rows:
        right = row.answer(images) == test.labels
        withstood = []
        for eps in arguments.eps:
            with announced(f"{row.name}, {row.attacks}, eps {eps:g}"):
                found = [attack(module, loss, images, labels, eps) for module, loss in row.modules]
                adversarial.setdefault((row.name, eps), found)
                tried = found + [one for name in row.transferred for one in adversarial[name, eps]]
                held = np.all([right, *(row.answer(one) == test.labels for one in tried)], axis=0)
                withstood.append(float(held.mean()))
        records.append(
            {"classifier": row.name, "attacks": row.attacks, "clean": float(right.mean()), "withstood": withstood}
        )
    columns = ["classifier", "clean", *(f"eps {eps:g}" for eps in arguments.eps), "attacks"]
    print_table(
        f"{len(test)} images, share in % that withstands every attack of the row",
        columns,
        [
            [
                one["classifier"],
                f"{100 * one['clean']:.0f}",
                *(f"{100 * share:.0f}" for share in one["withstood"]),
                one["attacks"],
            ]
            for one in records
        ],
    )
    save(
        arguments.out,
        {
            "question": "what share of images withstands attacks",
            "images": len(test),
            "eps": arguments.eps,
            "records": records,
        },
    )


if __name__ == "__main__":
    main()
