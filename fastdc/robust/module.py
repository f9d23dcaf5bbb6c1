"""The diffusion classifier as a differentiable torch module: images in [0, 1] in, logits out.

    logit_k(x) = -(mean over draws of the error of class k) / temperature

softmax(logits) are the probabilities of ``classify`` with every draw evaluated. Draws, weights, noise and errors are
the engine's (``torch_errors``); on another device than the engine's, or at another batch, logits agree within rounding.

The gradient of J draws and K classes cannot come from one graph, which would hold J K evaluations of the network. Chen
et al. (arXiv 2305.15241) compute the gradients of all logits in the forward pass and keep K images for each image. This
module keeps nothing. Its backward pass evaluates the cells again, a chunk at a time, with the same noise, and adds up
sum_k g_k dlogit_k/dx. Memory is the graph of one chunk for any J and K. The price is one more forward pass; the gain is
that classes with g_k = 0 are skipped, so an attack on a margin between two logits evaluates two of K classes. Second
derivatives are not offered.

By default the noise stream of an image is the hash of its pixels, as everywhere. The same image always sees the same
noise, so evaluating it again averages nothing; more draws do. Every new image, a small step away included, sees new
noise.
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastdc.bundle import Model, torch_samples
from fastdc.diffusion import Plan, make_plan
from fastdc.inference import Images, PlanOptions, check_streams, plan_config
from fastdc.robust.denoiser import ModelAndNetwork, denoiser_of, place_of
from fastdc.robust.likelihood import Maximization, maximization_of, maximize_tensor, null_class_of
from fastdc.robust.torch_errors import Draws, cell_errors
from fastdc.support import BackendError, InputError, checks

LIKELIHOOD_GRADIENTS = ("identity", "exact")


class ClassifierModule(nn.Module):
    """Logits of a diffusion classifier. Made by :func:`as_module`.

    Attributes:
        denoiser: The network; it shares the classifier's weights, which need no gradient.
        model: Shapes, classes, range of pixel values.
        plan: The draws.
        temperature: Temperature of the logits.
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
        likelihood: Maximization | None,
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
        """Sets the module's flag. The network stays in evaluation mode: dropout would make another classifier of it."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: (n, c, h, w), float, on any device. Pixels belong in [0, 1]; values outside are computed as they
                are, because attacks and optimizers step there for a moment. n may be 0.

        Returns:
            (n, K), of the images' type and on their device.

        Raises:
            InputError: `images` is not a floating-point tensor, or has a wrong shape, a NaN or an infinite value.
            BackendError: An error is not finite, for example because half precision overflows.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images must be a floating-point tensor, got {got}")
        if images.ndim != 4 or images.shape[1:] != self.model.image_shape:
            wanted = ", ".join(map(str, self.model.image_shape))
            one = ": one image is images[None]" if images.shape == self.model.image_shape else ""
            raise InputError(f"images must have shape (n, {wanted}), got {tuple(images.shape)}{one}")
        if images.shape == (0, *self.model.image_shape):
            return images.flatten(1).sum(1, keepdim=True).expand(0, self.model.num_classes)
        logits: Tensor = _Logits.apply(images, self)  # type: ignore[no-untyped-call]
        return logits

    def _prepared(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Checked images in [0, 1], the images to classify in the model's range, and streams, on the network's device.

        The stream is the given image's also if likelihood maximisation moves the image: the hash of a moved image would
        depend on rounding.
        """
        device, _ = place_of(self.denoiser, self._device)
        streams = None if self._stream is None else [self._stream] * len(images)
        given = Images.of(images, self.model, streams, bounded=False, layout="NCHW")
        unit, x, names = (torch.from_numpy(array).to(device) for array in (given.unit, given.x, given.streams))
        if self._likelihood is None:
            return unit, x, names
        parts = zip(torch.split(unit, self._chunk), torch.split(names, self._chunk), strict=True)
        moved = [maximize_tensor(self._likelihood, self.denoiser, self.model, part, noise) for part, noise in parts]
        return unit, self.model.pixels.from_unit(torch.cat(moved)), names

    def _draws(self, device: torch.device) -> Draws:
        rows, config = torch.from_numpy(self.plan.rows).to(device), self.plan.config
        return Draws(rows, self._seed, antithetic=self.plan.antithetic, loss=config.loss, delta=config.delta)

    def _logits(self, x: Tensor, streams: Tensor) -> Tensor:
        """float64 (n, K). x: in the model's range."""
        count, classes, draws = len(x), self.model.num_classes, self._draws(x.device)
        cells = _cells(torch.ones(count, classes, dtype=torch.bool, device=x.device), self.plan.draws)
        samples = torch_samples(self.model.transform, x)
        parts = [cell_errors(self.denoiser, samples, streams, part, draws) for part in torch.split(cells, self._chunk)]
        errors = torch.cat(parts)
        if not bool(torch.isfinite(errors).all()):
            raise BackendError("the network's error is not finite: expected a precision of wider range")
        return -errors.view(count, self.plan.draws, classes).double().mean(1) / self.temperature

    def _pull_back(self, x: Tensor, streams: Tensor, slope: Tensor) -> Tensor:
        """sum_k slope_k dlogit_k/dx, float32 (n, c, h, w). x: in the model's range; slope: (n, K)."""
        draws = self._draws(x.device)
        factors = slope.to(x.dtype) / (-self.temperature * self.plan.draws)
        total = torch.zeros_like(x)
        table = _cells(slope != 0, self.plan.draws)
        for start in range(0, len(table), self._chunk):
            cells = table[start : start + self._chunk]
            first, last = int(cells[0, 0]), int(cells[-1, 0]) + 1
            leaf = x[first:last].detach().requires_grad_()
            own = cells - cells.new_tensor([first, 0, 0])
            with torch.enable_grad():
                samples = torch_samples(self.model.transform, leaf)
                errors = cell_errors(self.denoiser, samples, streams[first:last], own, draws)
                (part,) = torch.autograd.grad(errors, leaf, grad_outputs=factors[cells[:, 0], cells[:, 1]])
            total[first:last] += part
        return total

    def _pull_back_steps(self, unit: Tensor, streams: Tensor, slope: Tensor) -> Tensor:
        """The slope at the given images, from the slope at the moved ones; both in [0, 1]-pixel units."""
        if self._likelihood is None or not self._exact:
            return slope
        result: list[Tensor] = []
        for given, noise, part in zip(*(torch.split(t, self._chunk) for t in (unit, streams, slope)), strict=True):
            leaf = given.detach().requires_grad_()
            moved = maximize_tensor(self._likelihood, self.denoiser, self.model, leaf, noise, differentiable=True)
            result += torch.autograd.grad(moved, leaf, grad_outputs=part)
        return torch.cat(result)


def _cells(chosen: Tensor, draws: int) -> Tensor:
    """The cells (image, class, draw) of the chosen classes, int32 (B, 3); images in order, then draws, then classes.

    Classes run fastest, because the kernels make the noise of an (image, draw) once for cells in sequence.
    """
    image, draw, label = chosen[:, None].expand(-1, draws, -1).nonzero().unbind(1)
    return torch.stack([image, label, draw], dim=1).int()


class _Logits(torch.autograd.Function):
    """The logits of images in [0, 1] and their gradient.

    The gradient is exact, except for likelihood maximisation with the identity gradient: there the gradient at the
    moved image stands for the gradient at the given image (backward pass differentiable approximation, Athalye et al.,
    arXiv 1802.00420).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, module: ClassifierModule) -> Tensor:
        unit, x, streams = module._prepared(images)
        ctx.module = module
        ctx.save_for_backward(unit, x, streams)
        return module._logits(x, streams).to(device=images.device, dtype=images.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        unit, x, streams = ctx.saved_tensors
        module: ClassifierModule = ctx.module
        gradient = module.model.pixels.width * module._pull_back(x, streams, slope.to(x.device))
        gradient = module._pull_back_steps(unit, streams, gradient)
        return gradient.to(device=slope.device, dtype=slope.dtype), None


def as_module(
    classifier: ModelAndNetwork,
    *,
    seed: int = 0,
    stream: int | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    likelihood_maximization: Maximization | str | None = None,
    likelihood_gradient: str = "identity",
    **plan: Unpack[PlanOptions],
) -> ClassifierModule:
    """The classifier as a differentiable module, for attack libraries and for your own gradients.

    Args:
        classifier: A ``DiffusionClassifier`` on the torch backend.
        seed: Seed of the noise, in [0, 2^64).
        stream: Noise stream of every image, in [0, 2^56), which makes the module one smooth function; default: the hash
            of each image's pixels, as in ``classify``.
        temperature: Temperature of the logits, positive; default: the model's. A higher one saturates softmax less.
        chunk: Number of evaluations of the network per step, which bounds the memory; default: the network's batch.
        likelihood_maximization: Method that moves images before classification (``maximize_likelihood``), or None.
        likelihood_gradient: Gradient of that method: "identity", as its authors attack it, or "exact", through all its
            steps. Exact attacks better, and needs second derivatives of the network and memory for the graph of all
            steps of a chunk of images.
        **plan: Plan options of ``DiffusionClassifier``, such as draws, levels and loss; methods "dc" and "epndc".

    Returns:
        A module that maps float images (n, c, h, w) in [0, 1] to logits (n, K).

    Raises:
        InputError: An option cannot be used, or likelihood maximisation is asked of a model without a null class.
        BackendError: The classifier does not run on the torch backend.

    Example:
        >>> import torch
        >>> from fastdc.robust import as_module
        >>> module = as_module(fastdc.load("digits-mlp", backend="torch"), draws=8)
        >>> module(torch.from_numpy(images / np.float32(255))).argmax(1).tolist() == labels.tolist()
        True
    """
    model, network = classifier.model, classifier.network
    model.check_plain("as_module")
    made = make_plan(model.schedule, model.parameterization, plan_config(model, plan))
    if made.method.denoises:
        raise InputError(f"gradients are of methods dc and epndc: got method {made.config.method}")
    how = None if likelihood_maximization is None else maximization_of(likelihood_maximization)
    if how is not None:
        null_class_of(model)
    return ClassifierModule(
        denoiser_of(classifier),
        model,
        made,
        seed=checks.seed(seed),
        stream=None if stream is None else int(check_streams([stream], 1)[0]),
        temperature=checks.positive("temperature", model.defaults.temperature if temperature is None else temperature),
        chunk=checks.whole_or("chunk", chunk, network.batch),
        likelihood=how,
        exact=checks.one_of("likelihood_gradient", likelihood_gradient, LIKELIHOOD_GRADIENTS) == "exact",
        device=network.device,
    )
