"""FlowEdit (Kulikov et al., arXiv 2412.08629, algorithm 1): an image becomes one of another class without inversion.

From the image X, Z = X and falling levels t, each step draws noise N and takes

    X_t = (1 - t) X + t N,    Z_t = Z + X_t - X,    Z <- Z + (t' - t) (V(Z_t, t, to) - V(X_t, t, from))

with the velocity V = e - x0, and the mean over several N if wanted. From a class to itself, with the same guidance,
nothing moves. Models of other schedules have no straight paths in t; for them the steps are taken in the coordinates
x / alpha and r = sigma / alpha, in which x_t = x + r e and V = e (``steps.moved``): this is no part of the paper.
"""

from collections.abc import Callable

from fastdc.sampling.steps import Denoise, noise_in
from fastdc.sampling.trajectory import Span
from fastdc.support import Float64


def flow_edit_step(
    x: Float64,
    z: Float64,
    span: Span,
    denoise_from: Denoise,
    denoise_to: Denoise,
    normals: Callable[[int], Float64],
    *,
    averages: int = 1,
    straight: bool = True,
) -> Float64:
    """One step of the edited image Z.

    Args:
        x: float64 (m, c, h, w), the images.
        z: float64 (m, c, h, w), the edited images so far.
        span: The step.
        denoise_from: Estimates under the images' own classes.
        denoise_to: Estimates under the classes to reach.
        normals: (k) -> the k-th noise of the step, float64 (m, c, h, w).
        averages: Number of noises whose directions are averaged.
        straight: Whether the model is a flow, whose paths are straight.

    Returns:
        float64 (m, c, h, w), Z after the step.

    Example:
        >>> from fastdc.sampling import Trajectory, flow_edit_step
        >>> x, first = np.zeros((2, 1, 8, 8)), next(iter(Trajectory.of(clf.model.schedule, 4)))
        >>> same = lambda x_t, number: 0.5 * x_t
        >>> bool((flow_edit_step(x, x, first, same, same, lambda k: x + k) == x).all())
        True
    """
    start, end = span.start, span.end
    assert start.number is not None
    c, c_end = (start.alpha, end.alpha) if not straight else (start.alpha + start.sigma, end.alpha + end.sigma)
    a, b = end.alpha / c_end - start.alpha / c, end.sigma / c_end - start.sigma / c
    direction = 0.0 * z
    for k in range(averages):
        noisy = start.alpha * x + start.sigma * normals(k)
        edited = noisy + c * (z - x)
        x0, z0 = denoise_from(noisy, start.number), denoise_to(edited, start.number)
        direction += a * (z0 - x0) + b * (noise_in(edited, z0, start) - noise_in(noisy, x0, start))
    return z + direction / averages
