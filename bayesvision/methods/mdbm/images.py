"""`ImageMDBM`: completion and classification of images by one convolutional Boltzmann machine."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from bayesvision.core.checks import as_tensor, check_count
from bayesvision.core.modules import outside_inference_mode
from bayesvision.core.roles import Following
from bayesvision.distributions import Categorical
from bayesvision.methods.mdbm.inference import Certificate
from bayesvision.methods.mdbm.machine import images
from bayesvision.methods.mdbm.posterior import MDBMPosterior
from bayesvision.methods.mdbm.tasks import Learning, MaskedRows
from bayesvision.training.batches import batches_of
from bayesvision.training.seeds import seeded
from bayesvision.training.train import Train

__all__ = ["Completion", "ImageMDBM", "ImageMDBMPosterior"]


@dataclass(frozen=True)
class ImageMDBM(Learning):
    """A monotone deep Boltzmann machine of the grey levels of images and their class (arXiv 2307.04990, section 4).

    Every hidden layer has half the height and width of the one before; pixels and hidden variables are coupled by
    convolutions, and each of them with the class. Without hidden layers every pixel is coupled with every other, which
    is better and faster for small images. Half of the masks in training are rectangles.

    Example:
        >>> post = bv.MDBM.images(shape=(1, 28, 28), classes=10).fit(train_loader)
        >>> post.classify(images, mask).probs
        >>> post.complete(images, mask).mean

    Args:
        shape: channels, height and width.
        classes: number of classes; None for images without.
        grey: levels of a pixel, from 0 to 1.
        hidden: numbers of hidden variables at each place, layer by layer.

    The others are those of `Learning`.

    Raises:
        ValueError: a field is out of range, or the height or width cannot be halved for every hidden layer.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    classes: int | None = None
    grey: int = 8
    hidden: tuple[int, ...] = (10, 20)
    states: int = 2
    observed: tuple[float, float] = (0.05, 1.0)
    train: Train = field(default_factory=lambda: Train(steps=4_000, batch=64, lr=1e-2))

    def __post_init__(self) -> None:
        super().__post_init__()
        for count in self.shape:
            check_count("shape", count)
        check_count("grey", self.grey, 2)
        if self.classes is not None:
            check_count("classes", self.classes, 2)
        if any(size % 2 ** len(self.hidden) for size in self.shape[1:]):
            raise ValueError(
                f"shape must have a height and width that {len(self.hidden)} hidden layers can halve, multiples of "
                f"{2 ** len(self.hidden)}, got {self.shape[1:]}; resize the images or take fewer layers"
            )

    @outside_inference_mode
    def fit(self, source: Any, log: Following = None) -> "ImageMDBMPosterior":
        """Learn from `Data(images, labels)` or a loader of such batches, which is read once.

        Images are [batch, channels, height, width], or [batch, height, width], from 0 to 1 or bytes.

        Raises:
            ValueError: images of another size or outside these bounds, or labels that are no classes.
        """
        posterior = self.untrained()
        with seeded(self.train.seed):  # a loader may draw its order
            parts = [posterior.codes(x, None, y) for x, y in batches_of(source)]
        codes = torch.cat(parts).float()
        rows = MaskedRows(codes, self, None if self.classes is None else codes.shape[1] - 1, self.shape[1:])
        posterior.learn(codes, rows, {"images": len(codes)}, log)
        posterior.metadata["images"] = len(codes)
        return posterior

    def untrained(self) -> "ImageMDBMPosterior":
        """A posterior with weak random interactions."""
        with seeded(self.train.seed):
            machine = images(self.shape, self.grey, self.classes, self.hidden, self.states, self.margin)
        return ImageMDBMPosterior(self, machine)


class Completion(NamedTuple):
    """Images without holes.

    Attributes:
        pixels: distributions over the grey levels [*batch, channels, height, width]; pixels that were seen are certain.
        mean, stddev: of the pixels, between 0 and 1.
        label: distribution over the classes, from the same inference; None if there are none.
        certificate: how near these are to the only fixed point, for each image.
    """

    pixels: Categorical
    mean: Float[Tensor, "... channels height width"]
    stddev: Float[Tensor, "... channels height width"]
    label: Categorical | None
    certificate: Certificate


class ImageMDBMPosterior(MDBMPosterior):
    """What a trained `ImageMDBM` knows, and the pixels that it has seen.

    Variables are numbered as in `image.flatten()`, and the class comes last.
    """

    method: ImageMDBM

    @property
    def label(self) -> Categorical:
        """Distribution over the classes given what was seen.

        Raises:
            ValueError: the machine was trained without classes.
        """
        if self.method.classes is None:
            raise ValueError("this machine knows no classes; train it with classes=K")
        return Categorical(
            probs=self.machine.marginals(self.belief)[..., -1, : self.method.classes], validate_args=False
        )

    def observe(self, images: Any, mask: Any = None) -> Self:
        """A new posterior that has seen the pixels of `images` where `mask` is True, and nothing else.

        Args:
            images: [*batch, channels, height, width], between 0 and 1 or bytes; without channels if there is one.
            mask: the same shape, or that of one image for all; all pixels when left out.

        Raises:
            ValueError: images of another size, a mask of another shape, or a pixel outside the bounds that is seen.
        """
        return self.given(self.codes(images, mask, None).to(self.seen.device))

    def classify(self, images: Any, mask: Any = None) -> Categorical:
        """Distribution over the classes of `images` given their pixels where `mask` is True; as in `observe`."""
        return self.observe(images, mask).label

    def complete(self, images: Any, mask: Any) -> Completion:
        """`images` with distributions over the pixels where `mask` is False; as in `observe`."""
        return self.observe(images, mask).completion

    @property
    def completion(self) -> Completion:
        """All pixels given those that were seen."""
        probs = self.machine.marginals(self.belief)
        shape, count = self.method.shape, self.method.shape[0] * self.method.shape[1] * self.method.shape[2]
        pixels = probs[..., :count, : self.method.grey].unflatten(-2, shape)
        value = torch.linspace(0, 1, self.method.grey, dtype=pixels.dtype, device=pixels.device)
        mean = pixels @ value
        stddev = (pixels @ value.square() - mean.square()).clamp(min=0).sqrt()
        label = None if self.method.classes is None else self.label
        return Completion(Categorical(probs=pixels, validate_args=False), mean, stddev, label, self.certificate)

    def codes(self, images: Any, mask: Any, labels: Any) -> Float[Tensor, "*batch variables"]:
        """Levels of pixels and labels, NaN where they are not seen."""
        method = self.method
        x = self._images(images)
        seen = torch.ones_like(x, dtype=torch.bool) if mask is None else self._mask(mask, x)
        there = x[seen]
        if not bool(((there >= 0) & (there <= 1)).all()):
            raise ValueError(
                "images must lie between 0 and 1, or be bytes, wherever they are seen, got "
                f"{float(there.min()):g} to {float(there.max()):g}; hide what is unknown by the mask"
            )
        codes = torch.where(seen, (x * (method.grey - 1)).round(), torch.nan).flatten(-3)
        if method.classes is None:
            return codes
        label = torch.full_like(codes[..., :1], torch.nan) if labels is None else self._labels(labels, codes)
        return torch.cat([codes, label], -1)

    def _images(self, images: Any) -> Tensor:
        x, shape = as_tensor("images", images), self.method.shape
        x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
        if shape[0] == 1 and x.shape[-2:] == shape[1:] and x.shape[-3:] != shape:
            x = x.unsqueeze(-3)
        if x.shape[-3:] != shape or not x.numel():
            raise ValueError(f"images must be [*batch, {', '.join(map(str, shape))}], got {tuple(x.shape)}")
        return x

    def _mask(self, mask: Any, x: Tensor) -> Tensor:
        seen = as_tensor("mask", mask)
        if seen.dtype != torch.bool:
            raise ValueError(f"mask must be True where a pixel is seen and False elsewhere, got {seen.dtype}")
        if self.method.shape[0] == 1 and seen.shape[-2:] == x.shape[-2:] and seen.shape[-3:] != x.shape[-3:]:
            seen = seen.unsqueeze(-3)
        if seen.ndim > x.ndim or seen.shape != x.shape[x.ndim - seen.ndim :] or seen.ndim < 3:
            raise ValueError(f"mask must have the shape of the images, {tuple(x.shape)}, got {tuple(seen.shape)}")
        return seen.expand(x.shape)

    def _labels(self, labels: Any, codes: Tensor) -> Tensor:
        label = as_tensor("y", labels).double()
        label = label.unsqueeze(-1) if label.ndim == codes.ndim - 1 else label
        wrong = (label != label.round()) | (label < 0) | (label >= (self.method.classes or 0))
        if label.shape != (*codes.shape[:-1], 1) or wrong.any():
            raise ValueError(
                f"y must hold a class from 0 to {(self.method.classes or 0) - 1} for each image, {codes.shape[0]}, "
                f"got {tuple(label.shape)} from {float(label.min()):g} to {float(label.max()):g}"
            )
        return label

    @classmethod
    def restore(cls, method: ImageMDBM, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The posterior that `export` described."""
        posterior: Any = method.untrained()
        return posterior.restored(tensors, header)
