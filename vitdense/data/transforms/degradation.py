"""Noise and blur, which images of another camera may have."""

from __future__ import annotations

from torchvision.transforms.v2 import functional

from vitdense.arguments import span, within
from vitdense.data.transforms.random import bernoulli, uniform
from vitdense.types import Sample


class GaussianNoise:
    """Add Gaussian noise of a random standard deviation from `sigma` (gray levels / 255), with `probability`."""

    def __init__(self, *, sigma: tuple[float, float] = (0.01, 0.05), probability: float = 0.2) -> None:
        self.sigma = span(sigma, 'GaussianNoise.sigma')
        self.probability = within(probability, 0, 1, 'GaussianNoise.probability')

    def __call__(self, sample: Sample) -> Sample:
        if not bernoulli(self.probability):
            return sample
        return sample._replace(img=functional.gaussian_noise(sample.img, sigma=uniform(*self.sigma)))


class GaussianBlur:
    """Blur with a Gaussian of a random standard deviation from `sigma` (pixels), with `probability`."""

    def __init__(self, *, sigma: tuple[float, float] = (0.5, 1.5), probability: float = 0.2) -> None:
        self.sigma = span(sigma, 'GaussianBlur.sigma')
        within(self.sigma[0], 0.01, 100, 'GaussianBlur.sigma')
        self.probability = within(probability, 0, 1, 'GaussianBlur.probability')

    def __call__(self, sample: Sample) -> Sample:
        if not bernoulli(self.probability):
            return sample
        sigma = uniform(*self.sigma)
        side = 2 * round(3 * sigma) + 1  # beyond three standard deviations weights are negligible
        return sample._replace(img=functional.gaussian_blur(sample.img, [side, side], [sigma, sigma]))
