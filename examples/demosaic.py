"""A trained demosaicking network, and photographs to ask it about.

The weights are those of the package demosaicnet (MIT; Gharbi et al. 2016, "Deep joint demosaicking and denoising"):

    pip install --no-deps demosaicnet==0.0.14 && pip install scikit-image

They are read as data alone, and no code of that package is run.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")


class Demosaic(nn.Module):
    """A Bayer mosaic [batch, 3, height, width], zeros where nothing was measured, to an image of the same size.

    Fifteen convolutions at half resolution give filters and masks, whose product is brought back to full resolution
    and joined with the mosaic for two more.
    """

    def __init__(self, depth: int = 15, width: int = 64) -> None:
        super().__init__()
        layers = {"pack_mosaic": nn.Conv2d(3, 4, 2, stride=2)}
        for k in range(1, depth + 1):
            outputs = width if k < depth else 2 * width
            layers[f"conv{k}"] = nn.Conv2d(4 if k == 1 else width, outputs, 3, padding=1)
            layers[f"relu{k}"] = nn.ReLU(inplace=True)
        self.main_processor = nn.Sequential()
        for name, layer in layers.items():
            self.main_processor.add_module(name, layer)
        self.residual_predictor = nn.Conv2d(width, 12, 1)
        self.upsampler = nn.ConvTranspose2d(12, 3, 2, stride=2, groups=3)
        self.fullres_processor = nn.Sequential()
        for name, layer in {
            "post_conv": nn.Conv2d(6, width, 3, padding=1),
            "post_relu": nn.ReLU(inplace=True),
            "output": nn.Conv2d(width, 3, 1),
        }.items():
            self.fullres_processor.add_module(name, layer)

    def features(self, mosaic: Tensor) -> Tensor:
        """What the last convolution, 1 x 1, sees."""
        filters, masks = self.main_processor(mosaic).chunk(2, 1)
        upsampled = self.upsampler(self.residual_predictor(filters * masks))
        return self.fullres_processor[:2](torch.cat([mosaic, upsampled], 1))

    def forward(self, mosaic: Tensor) -> Tensor:
        return self.fullres_processor[2](self.features(mosaic))


def build() -> Demosaic:
    """The network with its trained weights.

    Raises:
        ModuleNotFoundError: demosaicnet is not installed.
    """
    spec = importlib.util.find_spec("demosaicnet")  # finds the package without running it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("demosaicnet is not installed: pip install --no-deps demosaicnet==0.0.14")
    weights = torch.load(Path(spec.origin).parent / "data" / "bayer.pth", map_location="cpu", weights_only=True)
    network = Demosaic()
    network.load_state_dict(weights)
    return network.eval()


def mosaic(image: Tensor) -> Tensor:
    """The Bayer mosaic (green, red; blue, green) of an image [..., 3, height, width]."""
    mask = torch.zeros_like(image)
    mask[..., 0, 0::2, 1::2] = 1
    mask[..., 1, 0::2, 0::2] = 1
    mask[..., 1, 1::2, 1::2] = 1
    mask[..., 2, 1::2, 0::2] = 1
    return image * mask


def even(image: Tensor, most: int) -> Tensor:
    """The middle of an image, at most `most` pixels high and wide and an even number of them."""
    height, width = (min(most, n) // 2 * 2 for n in image.shape[-2:])
    top, left = ((n - m) // 2 for n, m in zip(image.shape[-2:], (height, width), strict=True))
    return image[..., top : top + height, left : left + width].contiguous()


def photographs(most: int = 256) -> dict[str, Tensor]:
    """Images [3, height, width] in 0..1 that come with scikit-image.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    from skimage import data

    images = {name: getattr(data, name)() for name in PHOTOGRAPHS}
    return {name: even(torch.from_numpy(v).movedim(-1, 0) / 255, most) for name, v in images.items()}
