"""The diffusion classifier as a differentiable torch module: images in [0, 1] in, logits out.

    logit_k(x) = -(mean over draws of the error of class k) / temperature

so that softmax(logits) are the probabilities of ``classify`` with every draw evaluated. The draws, their weights and,
on the CPU, the noise are those of ``errors``; logits agree with it within float32 rounding.

The gradient of J draws and K classes cannot be had from one graph: it would hold J K evaluations of the network. Chen
et al. (arXiv 2305.15241) compute the gradients of all logits with the forward pass, and keep K images for each image.
Here nothing is kept: the backward pass evaluates the cells again, a chunk at a time, from noise that is a function of
(seed, stream, draw), and adds up sum_k g_k dlogit_k/dx. Memory is one chunk's graph, whatever J and K are. It costs one
more forward pass, and saves all passes of classes whose g_k is zero: an attack on a margin between logits needs two of
K. Gradients of gradients are not offered.

An attack library sees a function of x with its noise held fixed. By default the noise stream is the hash of the image,
as everywhere: every new x sees new noise, and the same x the same noise, so that evaluating one x several times
averages nothing. What averages is more draws.
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastdc.bundle import Model
from fastdc.diffusion import Plan, make_plan
from fastdc.inference import PlanOptions, check_streams, plan_config, streams_of, to_model_range
from fastdc.robust.likelihood import AbstractMaximization, maximization_of, maximize_tensor, null_class_of
from fastdc.robust.torch_errors import (
    ModelAndNetwork,
    cell_errors,
    check_rows,
    denoiser_of,
    noise_of,
    place_of,
    positive_whole,
)
from fastdc.support import BackendError, InputError, checks

LIKELIHOOD_GRADIENTS = ("identity", "exact")


class ClassifierModule(nn.Module):
    """Logits of a diffusion classifier. Made by :func:`as_module`.

    Attributes:
        denoiser: The network; its weights are the classifier's and need no gradient.
        model: Shapes, classes, range.
        plan: The draws.
        temperature: Of the logits.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        model: Model,
        plan: Plan,
        *,
        seed: int,
        stream: int | None,
        temperature: float,
        chunk: int,
        likelihood: AbstractMaximization | None,
        exact: bool,
        device: str,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.model = model
        self.plan = plan
        self.temperature = temperature
        self._seed = seed
        self._stream = stream
        self._chunk = chunk
        self._likelihood = likelihood
        self._exact = exact
        self._device = device
        self.eval()

    def train(self, mode: bool = True) -> "ClassifierModule":
        """Sets the flag. The network stays in evaluation mode: with dropout it would be another classifier."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits.

        Args:
            images: (n, c, h, w), float in [0, 1], on any device.

        Returns:
            (n, K) of the images' type, on their device.

        Raises:
            InputError: Not a floating-point tensor, or of a wrong shape, range, NaN or empty.
            BackendError: An error is not finite, as when half precision overflows.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images must be a floating-point tensor in [0, 1], got {got}")
        logits: Tensor = _Logits.apply(images, self)  # type: ignore[no-untyped-call]
        return logits

    def _place(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images in the model's range and their streams, where the network runs, checked."""
        device, _ = place_of(self.denoiser, self._device)
        x = to_model_range(images, self.model)
        streams = streams_of(x)
        if self._stream is not None:
            streams[:] = self._stream
        return torch.from_numpy(x).to(device), torch.from_numpy(streams).to(device)

    def _likelier(self, x: Tensor, streams: Tensor) -> Tensor:
        """What is classified in place of x, both in the model's range: likelier images, or x itself."""
        if self._likelihood is None:
            return x
        low, high = self.model.value_range
        parts = zip(torch.split(self._unit(x), self._chunk), torch.split(streams, self._chunk), strict=True)
        moved = [maximize_tensor(self._likelihood, self.denoiser, self.model, part, noise) for part, noise in parts]
        return torch.cat(moved) * (high - low) + low

    def _pull_back_steps(self, x: Tensor, streams: Tensor, slope: Tensor) -> Tensor:
        """The slope at x, given that at the likelier images; both in units of [0, 1] pixels."""
        if self._likelihood is None or not self._exact:
            return slope
        result: list[Tensor] = []
        for part, noise, given in zip(*(torch.split(t, self._chunk) for t in (x, streams, slope)), strict=True):
            unit = self._unit(part).requires_grad_()
            moved = maximize_tensor(self._likelihood, self.denoiser, self.model, unit, noise, differentiable=True)
            result += torch.autograd.grad(moved, unit, grad_outputs=given)
        return torch.cat(result)

    def _unit(self, x: Tensor) -> Tensor:
        low, high = self.model.value_range
        return ((x - low) / (high - low)).clamp(0, 1)

    def _errors(self, x: Tensor, streams: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """Errors of cells, each with its own x and stream."""
        rows = torch.from_numpy(self.plan.rows).to(x.device)[draws]
        counted = draws >> 1 if self.plan.antithetic else draws
        noise = noise_of(streams, counted, self.model.image_shape, seed=self._seed)
        config = self.plan.config
        return cell_errors(self.denoiser, x, rows, noise, labels, loss=config.loss, delta=config.delta)

    def _logits(self, x: Tensor, streams: Tensor) -> Tensor:
        """float64 (n, K)."""
        draws, classes = self.plan.draws, self.model.num_classes
        errors = torch.empty(len(x) * classes * draws, device=x.device)
        for start in range(0, len(errors), self._chunk):
            cell = torch.arange(start, min(start + self._chunk, len(errors)), device=x.device)
            image, label, draw = cell // (classes * draws), cell // draws % classes, cell % draws
            errors[start : start + self._chunk] = self._errors(x[image], streams[image], label, draw)
        if not bool(torch.isfinite(errors).all()):
            raise BackendError("the network's error is not finite: expected a precision of wider range")
        return -errors.view(len(x), classes, draws).double().mean(2) / self.temperature

    def _pull_back(self, x: Tensor, streams: Tensor, slope: Tensor) -> Tensor:
        """sum_k slope_k dlogit_k / dx, float32 (n, c, h, w), x in the model's range. slope: (n, K)."""
        draws = self.plan.draws
        pairs = slope.nonzero()  # (image, class), images in order
        factors = slope[pairs[:, 0], pairs[:, 1]].to(x.dtype) / (-self.temperature * draws)
        total = torch.zeros_like(x)
        for start in range(0, len(pairs) * draws, self._chunk):
            cell = torch.arange(start, min(start + self._chunk, len(pairs) * draws), device=x.device)
            image, label = pairs[cell // draws].unbind(1)
            first, last = int(image[0]), int(image[-1]) + 1
            leaf = x[first:last].detach().requires_grad_()
            with torch.enable_grad():
                errors = self._errors(leaf[image - first], streams[image], label, cell % draws)
                (part,) = torch.autograd.grad(errors, leaf, grad_outputs=factors[cell // draws])
            total[first:last] += part
        return total


class _Logits(torch.autograd.Function):
    """The logits of images in [0, 1] and their gradient.

    It is exact but for likelihood maximisation, unless that is asked for: the gradient at the moved image is then taken
    for that at the image, the backward pass differentiable approximation of Athalye et al., arXiv 1802.00420.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, module: ClassifierModule) -> Tensor:
        given, streams = module._place(images)
        # The stream stays that of the given image: a hash of what rounding decides would not be reproducible.
        x = module._likelier(given, streams)
        ctx.module = module
        ctx.save_for_backward(given, x, streams)
        return module._logits(x, streams).to(device=images.device, dtype=images.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        given, x, streams = ctx.saved_tensors
        low, high = ctx.module.model.value_range
        gradient = (high - low) * ctx.module._pull_back(x, streams, slope.to(x.device))
        gradient = ctx.module._pull_back_steps(given, streams, gradient)
        return gradient.to(device=slope.device, dtype=slope.dtype), None


def as_module(
    classifier: ModelAndNetwork,
    *,
    seed: int = 0,
    stream: int | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    likelihood_maximization: AbstractMaximization | str | None = None,
    likelihood_gradient: str = "identity",
    **plan: Unpack[PlanOptions],
) -> ClassifierModule:
    """The classifier as a differentiable module, for attack libraries and for gradients of one's own.

    Args:
        classifier: A ``DiffusionClassifier`` on the torch backend.
        seed: Of the noise, in [0, 2^64).
        stream: Noise stream of every image, in [0, 2^56), which makes the module one smooth function; default: from
            the image's pixels, as in ``classify``.
        temperature: Of the logits, positive; default: the model's. A larger one keeps an attack's softmax from
            saturating, and changes no label.
        chunk: Network evaluations at once, which bounds the memory; default: the network's batch.
        likelihood_maximization: None, "paper", "rdc" or one made by hand: moves images before they are classified
            (``maximize_likelihood``).
        likelihood_gradient: Of that step: "identity", as its authors attack it, or "exact", which differentiates
            through all its steps and attacks better. Exact needs a network with second derivatives, and the graph of
            all steps of a chunk of images.
        **plan: Plan options, see ``DiffusionClassifier``: draws, levels, weighting, loss and so on.

    Raises:
        InputError: An option cannot be used, or the model has no null class to maximise the likelihood with.
        BackendError: The classifier does not run on the torch backend.
    """
    model, network = classifier.model, classifier.network
    model.check_plain("as_module")
    made = make_plan(model.schedule, model.parameterization, plan_config(model, plan))
    check_rows(made)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= checks.MAX_SEED:
        raise InputError(f"seed must be a whole number in [0, 2^64), got {seed!r:.80}")
    value = model.defaults.temperature if temperature is None else temperature
    if not checks.is_number(value) or not 0 < value < float("inf"):
        raise InputError(f"temperature must be positive, got {value!r:.80}")
    if likelihood_gradient not in LIKELIHOOD_GRADIENTS:
        known = ", ".join(LIKELIHOOD_GRADIENTS)
        raise InputError(f"likelihood_gradient must be one of {known}, got {likelihood_gradient!r:.80}")
    how = None
    if likelihood_maximization is not None:
        how = maximization_of(likelihood_maximization)
        null_class_of(model)
    return ClassifierModule(
        denoiser_of(classifier),
        model,
        made,
        seed=seed,
        stream=None if stream is None else int(check_streams([stream], 1)[0]),
        temperature=float(value),
        chunk=positive_whole("chunk", chunk, default=network.batch),
        likelihood=how,
        exact=likelihood_gradient == "exact",
        device=network.device,
    )
