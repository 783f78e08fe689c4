"""How good is the spread that a cap puts around a frozen network? Against constants, an edge map and Bayesian peers.

The network demosaicks photographs (examples/demosaic.py); its errors on held-out images are what the spread must tell.
Images are those that scikit-image ships and the super-resolution sets of BAYESVISION_DATA, split by image into
training, calibration and test. Every row has the network's answer as its mean. Scores are means over the test images
(uce and ence over their pixels together), with 90 % intervals from a bootstrap over the images; noise is normal, of
standard deviation 0.05 on the input for coverage and 0.06 for the AUROC of the score that tells noisy images. "Noisy
training" adds two noisy copies of every training and calibration image.

    BAYESVISION_DATA=... python bayescap.py --peers PYTHON

PYTHON is that of an environment with the same torch, laplace-torch and mapie; without it their rows are left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bayesvision as bv
from bayesvision import metrics
from bayesvision.distributions import GeneralizedNormal, Mixture, Normal
from bayesvision.distributions.base import reshaped
from bayesvision.methods.bayescap.calibration import constant_law
from benchmarks.common import DATA, write

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from demosaic import build, even, mosaic, photographs

SIZE, SMALL, PIXELS, BOOTSTRAP = 192, 128, 3000, 200
TRAIN, CALIBRATE = 28, 20
NOISE, STRANGE = 0.05, 0.06


@dataclass
class Images:
    """OutputDataset of mosaics and images, and the network's answers."""

    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return [(x.unsqueeze(0), y.unsqueeze(0)) for x, y in zip(self.x, self.y, strict=True)]


def load(seed: int) -> dict[str, Tensor]:
    """All images in a random order."""
    from PIL import Image

    images = photographs(SIZE)
    for path in sorted((DATA / "sr_images").rglob("*.[pb][nm][gp]")):
        pixels = np.array(Image.open(path).convert("RGB"))
        images[f"{path.parent.name}/{path.stem}"] = even(torch.from_numpy(pixels).movedim(-1, 0) / 255, SIZE)
    names = sorted(images)
    np.random.default_rng(seed).shuffle(names)
    return {name: images[name] for name in names}


@torch.no_grad()
def ask(net: nn.Module, images: list[Tensor], noise: float = 0.0, seed: int = 1) -> Images:
    found, source = Images(), torch.Generator().manual_seed(seed)
    for y in images:
        x = mosaic(y) + noise * torch.randn(y.shape, generator=source)
        found.x.append(x)
        found.y.append(y)
        found.answers.append(net(x.unsqueeze(0))[0])
    return found


def copies(net: nn.Module, images: list[Tensor]) -> Images:
    """Two noisy copies of every image."""
    found = [ask(net, images, level, seed=10 + k) for k, level in enumerate((0.02, 0.05))]
    return Images(*([v for f in found for v in getattr(f, name)] for name in ("x", "y", "answers")))


# What the rows have in common: the law of an image, given the mosaic and the network's answer


Law = Callable[[Tensor, Tensor], Any]


@dataclass
class Row:
    name: str
    law: Law
    seconds: float
    parameters: int = 0
    score: Callable[[Tensor, Tensor], float] | None = None  # tells strange images; the mean spread if left out
    interval: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


def stretched(spread: Callable[[Tensor, Tensor], Tensor], train: Images) -> Callable[[Tensor, Tensor], Any]:
    """A generalised normal with alpha^2 = a spread^2 + b and one beta, the likeliest on the training images."""
    parts = [(y - answer, spread(x, answer)) for x, y, answer in zip(train.x, train.y, train.answers, strict=True)]
    errors, given = (torch.cat([p[k].flatten()[::7] for p in parts]) for k in (0, 1))
    start = float(errors.std())
    values = torch.tensor([0.0, np.log(start) - 1, 0.5], requires_grad=True)
    scale = given.square().mean().sqrt().clamp(min=1e-12)

    def law(values: Tensor, mean: Tensor, given: Tensor) -> Any:
        alpha = ((2 * values[0]).exp() * start**2 * (given / scale).square() + (2 * values[1]).exp()).sqrt()
        return GeneralizedNormal(mean, alpha, 0.3 + nn.functional.softplus(values[2]), validate_args=False)

    solver = torch.optim.Adam([values], lr=0.05)
    for _ in range(150):
        solver.zero_grad()
        (-law(values, torch.zeros_like(errors), given).log_prob(errors).mean()).backward()
        solver.step()
    fixed = values.detach()
    return lambda x, answer: law(fixed, answer, spread(x, answer))


def edges(x: Tensor, answer: Tensor) -> Tensor:
    """Gradient energy of the answer, smoothed over 3 x 3 pixels."""
    padded = nn.functional.pad(answer.unsqueeze(0), (1, 1, 1, 1), mode="replicate")[0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    energy = (across.square() + down.square()).mean(0, keepdim=True)
    return nn.functional.avg_pool2d(energy, 3, 1, 1).sqrt().expand_as(answer)


def constants(train: Images) -> list[Row]:
    errors = torch.stack(
        [torch.cat([(y - a)[c].flatten() for y, a in zip(train.y, train.answers, strict=True)]) for c in range(3)]
    )
    start = time.perf_counter()
    sigma = errors.std(1).view(3, 1, 1)
    laws = torch.tensor([constant_law(e, "generalized", 1e-9) for e in errors]).view(3, 2, 1, 1)
    seconds = time.perf_counter() - start

    def generalized(x: Tensor, answer: Tensor) -> Any:
        return GeneralizedNormal(answer, laws[:, 0].exp().expand_as(answer), laws[:, 1].expand_as(answer))

    return [
        Row("constant normal", lambda x, answer: Normal(answer, sigma.expand_as(answer)), seconds, 3),
        Row("constant generalised normal", generalized, seconds, 6),
    ]


@torch.no_grad()
def augmented(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Spread of 16 passes: what maps a Bayer mosaic to one (flips with a shift, transposition), two noises each."""

    def spread(x: Tensor, answer: Tensor) -> Tensor:
        source, outputs = torch.Generator().manual_seed(0), []
        for turned in (False, True):
            for flips in ((), (-1,), (-2,), (-1, -2)):
                for _ in range(2):
                    z = x + 0.005 * torch.randn(x.shape, generator=source)
                    z = z.transpose(-1, -2).flip(0) if turned else z  # red and blue change places
                    z = z.flip(flips).roll([1] * len(flips), flips) if flips else z
                    out = net(z.unsqueeze(0))[0]
                    out = out.roll([-1] * len(flips), flips).flip(flips) if flips else out
                    outputs.append(out.flip(0).transpose(-1, -2) if turned else out)
        return torch.stack(outputs).std(0)

    return torch.no_grad()(spread)


def dropped(net: nn.Module, rate: float = 0.02, passes: int = 16) -> Callable[[Tensor, Tensor], Tensor]:
    """Spread of passes with channels of the inner layers dropped."""

    @torch.no_grad()
    def spread(x: Tensor, answer: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(0)

        def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept = torch.rand(output.shape[1], generator=source) >= rate
            return output * kept.view(-1, 1, 1) / (1 - rate)

        handles = [m.register_forward_hook(drop) for m in net.modules() if isinstance(m, nn.ReLU)]
        outputs = torch.stack([net(x.unsqueeze(0))[0] for _ in range(passes)])
        for handle in handles:
            handle.remove()
        return outputs.std(0)

    return spread


def timed(name: str, spread: Any, train: Images, parameters: int = 3) -> Row:
    start = time.perf_counter()
    law = stretched(spread, train)
    return Row(name, law, time.perf_counter() - start, parameters)


def of_posterior(name: str, posterior: Any, seconds: float, calibrated: bool) -> Row:
    def law(x: Tensor, answer: Tensor) -> Any:
        return posterior.predict(x.unsqueeze(0))

    def interval(x: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        return posterior.interval(x.unsqueeze(0))

    def score(x: Tensor, answer: Tensor) -> float:
        return float(posterior.ood_score(x.unsqueeze(0)))

    return Row(name, law, seconds, posterior.cap.metadata["parameters"], score, interval if calibrated else None)


def caps(
    net: nn.Module, train: Images, noisy: Images, calibrate: Images, noisy_held: Images, steps: int
) -> tuple[list[Row], dict[str, Any]]:
    base = bv.BayesCap(net, "generalized", crop=48, train=bv.Train(steps=steps, batch=8, lr=2e-3))
    both = ("output", "input")
    recipes = {
        "cap, generalised": base,
        "cap, generalised, input too": replace(base, reads=both),
        "cap, gaussian, input too": replace(base, reads=both, family="gaussian"),
        "cap, laplace, input too": replace(base, reads=both, family="laplace"),
        "cap, student, input too": replace(base, reads=both, family="student"),
        "cap, generalised, input too, noisy training": replace(base, reads=both),
        "3 caps, generalised, input too": replace(base, reads=both, members=3),
        "legacy loss": replace(base, loss="legacy"),
        "legacy loss, input too": replace(base, reads=both, loss="legacy"),
    }
    rows, posteriors = [], {}
    for name, recipe in recipes.items():
        start = time.perf_counter()
        source = train.batches() + (noisy.batches() if "noisy" in name else [])
        posterior = recipe.fit(source)
        seconds = time.perf_counter() - start
        rows.append(of_posterior(name, posterior, seconds, False))
        held = calibrate.batches() + (noisy_held.batches() if "noisy" in name else [])
        posteriors[name] = posterior.calibrate(held)
        seconds = time.perf_counter() - start
        rows.append(of_posterior(f"{name}, calibrated", posteriors[name], seconds, True))
        print(f"  {name}: {seconds:.1f} s", flush=True)
    return rows, posteriors


def pixels(net: nn.Module, images: Images, count: int, seed: int) -> dict[str, np.ndarray]:
    """Features, answers and targets of pixels of each image."""
    found: dict[str, list[Tensor]] = {"features": [], "answers": [], "targets": []}
    source = torch.Generator().manual_seed(seed)
    for x, y, answer in zip(images.x, images.y, images.answers, strict=True):
        place = torch.randperm(y[0].numel(), generator=source)[:count] if count else torch.arange(y[0].numel())
        with torch.no_grad():
            features = net.features(x.unsqueeze(0))[0]
        for name, value in (("features", features), ("answers", answer), ("targets", y)):
            found[name].append(value.flatten(1)[:, place].T)
    return {name: torch.cat(parts).contiguous().numpy() for name, parts in found.items()}


def peers(
    python: str, net: nn.Module, train: Images, calibrate: Images, test: Images, noisy: Images
) -> tuple[list[Row], dict]:
    """Rows of an environment of their own: laplace-torch on the last layer, MAPIE's constant interval."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        both = Images(test.x + noisy.x, test.y + noisy.y, test.answers + noisy.answers)
        for part, images, count in (("train", train, 4000), ("calibrate", calibrate, 4000), ("test", both, 0)):
            np.savez(folder / f"{part}.npz", **pixels(net, images, count, 5))
        last = net.fullres_processor[2]
        np.savez(folder / "last.npz", weight=last.weight.detach()[..., 0, 0].numpy(), bias=last.bias.detach().numpy())
        script = Path(__file__).parent / "peer_last_layer.py"
        subprocess.run([python, "-W", "ignore", str(script), name], check=True, env={"OMP_NUM_THREADS": "1"})
        found, spreads = json.loads((folder / "peers.json").read_text()), {}
        for peer, facts in found.items():
            if "seconds" in facts:
                flat, place = torch.from_numpy(np.load(folder / f"{peer}.npz")["spread"]), 0
                for x, y in zip(both.x, both.y, strict=True):
                    count = y[0].numel()
                    spreads[peer, x.data_ptr()] = flat[place : place + count].T.reshape(y.shape)
                    place += count
    rows = []
    if "seconds" in found.get("laplace", {}):
        law = lambda x, answer: Normal(answer, spreads["laplace", x.data_ptr()])  # noqa: E731
        rows.append(Row("laplace-torch, last layer", law, found["laplace"]["seconds"], 195))
    if "seconds" in found.get("mapie", {}):
        inside = lambda x, a: (a - spreads["mapie", x.data_ptr()], a + spreads["mapie", x.data_ptr()])  # noqa: E731
        rows.append(Row("MAPIE, constant width", None, found["mapie"]["seconds"], 3, None, inside))  # pyright: ignore
    return rows, found


# Scores


def at(law: Any, place: Tensor) -> Any:
    """The law of some of the numbers of an image."""
    if isinstance(law, Mixture):
        parts = law.component_distribution
        return Mixture.of(reshaped(parts, lambda v: v.reshape(-1, v.shape[-1])[place]))
    return reshaped(law, lambda v: v.flatten()[place])


@torch.no_grad()
def measure(row: Row, test: Images, noisy: Images, strange: Images) -> dict[str, Any]:
    """One line of the table."""
    each: dict[str, list[float]] = {}
    variances, squares, milliseconds = [], [], []
    for k in range(len(test.y)):
        x, y, answer = test.x[k], test.y[k], test.answers[k]
        place = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(k))[:PIXELS]
        target = y.flatten()[place]
        found: dict[str, float] = {}
        if row.law is not None:
            start = time.perf_counter()
            whole = row.law(x, answer)
            milliseconds.append(1000 * (time.perf_counter() - start))
            law = at(whole, place)
            found = {
                "nll": float(metrics.nll(law, target)),
                "crps": float(metrics.crps(law, target)),
                "ause": float(metrics.ause(law, target)),
                "pearson": metrics.error_correlation(law, target).pearson,
                "spearman": metrics.error_correlation(law, target).spearman,
                "coverage": float(metrics.coverage(law, target)),
                "width": float(metrics.interval_width(law)),
            }
            far = noisy.y[k].flatten()[place]
            found["coverage, noise"] = float(metrics.coverage(at(row.law(noisy.x[k], noisy.answers[k]), place), far))
            variances.append(law.variance.double().flatten())
            squares.append((target - law.mean).double().square().flatten())
        if row.interval is not None:
            for name, images in (("conformal coverage", test), ("conformal coverage, noise", noisy)):
                low, high = (v.reshape(y.shape) for v in row.interval(images.x[k], images.answers[k]))
                found[name] = float(((images.y[k] >= low) & (images.y[k] <= high)).float().mean())
        for name, value in found.items():
            each.setdefault(name, []).append(value)
    line: dict[str, Any] = {"row": row.name}
    source = np.random.default_rng(0)
    samples = [source.integers(len(test.y), size=len(test.y)) for _ in range(BOOTSTRAP)]
    for name, values in each.items():
        array = np.array(values)
        means = [np.nanmean(array[s]) if np.isfinite(array[s]).any() else np.nan for s in samples]
        line[name] = band(float(np.nanmean(array)) if np.isfinite(array).any() else None, means)
    if variances:
        for name, score in (("uce x 1e4", uce), ("ence", ence)):
            line[name] = band(
                score(variances, squares, range(len(variances))), [score(variances, squares, s) for s in samples]
            )
    if row.law is not None:
        score = row.score or (lambda x, answer: float(row.law(x, answer).stddev.mean()))
        usual, odd = ([score(x, a) for x, a in zip(i.x, i.answers, strict=True)] for i in (test, strange))
        line |= {
            "ood auroc": round(metrics.ood_auroc(usual, odd), 3),
            "ood fpr95": round(metrics.ood_fpr95(usual, odd), 3),
        }
        line["ms an image"] = round(float(np.median(milliseconds)), 1)
    return line | {"fit seconds": round(row.seconds, 1), "parameters": row.parameters}


def band(value: float | None, samples: list[float]) -> str:
    if value is None:
        return "-"
    low, high = np.nanquantile(samples, [0.05, 0.95])
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def pooled(variances: list[Tensor], squares: list[Tensor], chosen: Any) -> tuple[Any, Tensor]:
    variance, square = (torch.cat([parts[k] for k in chosen]) for parts in (variances, squares))
    return Normal(torch.zeros_like(square), variance.sqrt(), validate_args=False), square.sqrt()


def uce(variances: list[Tensor], squares: list[Tensor], chosen: Any) -> float:
    return 1e4 * float(metrics.uncertainty_calibration_error(*pooled(variances, squares, chosen)))


def ence(variances: list[Tensor], squares: list[Tensor], chosen: Any) -> float:
    return float(metrics.expected_normalized_calibration_error(*pooled(variances, squares, chosen)))


def overhead(net: nn.Module, posterior: Any, x: Tensor) -> dict[str, float]:
    """Milliseconds of the network alone and of the wrapped prediction, the least of five."""
    found = {}
    with torch.no_grad():
        for name, call in (("frozen", net), ("wrapped", posterior.predict)):
            call(x)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                call(x)
                times.append(1000 * (time.perf_counter() - start))
            found[f"{name} ms"] = round(min(times), 1)
    found["ratio"] = round(found["wrapped ms"] / found["frozen ms"], 2)
    return found


def pictures(folder: Path, posterior: Any, legacy: Any, test: Images) -> None:
    """The maps of one test image, and the calibration and sparsification curves over all of them."""
    from matplotlib.figure import Figure

    from bayesvision import plots

    best = int(np.argmax([float((y - a).square().mean()) for y, a in zip(test.y, test.answers, strict=True)]))
    with torch.no_grad():
        law = posterior.predict(test.x[best].unsqueeze(0))
        figure = plots.uncertainty_maps(reshaped(law, lambda v: v[0]), test.x[best], test.y[best])
        figure.savefig(folder / "bayescap_maps.png", dpi=110)
        figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        laws, curves = {}, {}
        for name, post in (("cap, calibrated", posterior), ("legacy loss", legacy)):
            parts, targets = [], []
            for k, (x, y) in enumerate(zip(test.x, test.y, strict=True)):
                place = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(k))[:PIXELS]
                parts.append(at(post.predict(x.unsqueeze(0)), place))
                targets.append(y.flatten()[place])
            names = list(parts[0].arg_constraints)
            whole = type(parts[0])(*(torch.cat([getattr(p, n) for p in parts]) for n in names), validate_args=False)
            target = torch.cat(targets)
            laws[name], curves[name] = whole, metrics.sparsification(whole, target)
        plots.calibration_curve(laws, target, ax=left)
        plots.sparsification_curve(curves, ax=right)
        figure.savefig(folder / "bayescap_curves.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each cap")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--peers", help="python of an environment with laplace-torch and mapie")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--name", default="bayescap")
    a = parser.parse_args()
    if not (DATA / "sr_images").is_dir():
        print(f"no images in {DATA}; set BAYESVISION_DATA to the folder that holds sr_images")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, net, images = time.perf_counter(), build(), list(load(a.seed).values())
    train = images[:TRAIN]
    calibrate = [even(y, SMALL) for y in images[TRAIN : TRAIN + CALIBRATE]]
    held_out = [even(y, SMALL) for y in images[TRAIN + CALIBRATE :]]
    test, noisy, strange = (ask(net, held_out, noise) for noise in (0.0, NOISE, STRANGE))
    trained, calibrated = ask(net, train), ask(net, calibrate)
    extra, extra_held = copies(net, train), copies(net, calibrate)
    rows = constants(trained)
    rows.append(timed("gradient energy of the answer", edges, trained))
    few = Images(trained.x[:10], trained.y[:10], trained.answers[:10])  # passes are dear
    rows.append(timed("test-time augmentation, 16 passes", augmented(net), few))
    rows.append(timed("dropout at inference, 16 passes", dropped(net), few))
    versions: dict[str, Any] = {}
    if a.peers:
        more, versions = peers(a.peers, net, trained, calibrated, test, noisy)
        rows += more
    ours, posteriors = caps(net, trained, extra, calibrated, extra_held, a.steps)
    rows += ours
    lines = []
    for row in rows:
        if row.name.startswith("laplace"):  # it has the test images alone
            row.score = lambda x, answer: 0.0
        lines.append(measure(row, test, noisy, strange))
        if row.name.startswith("laplace"):
            lines[-1] |= {"ood auroc": None, "ood fpr95": None}
        print(
            {
                k: v
                for k, v in lines[-1].items()
                if k in ("row", "nll", "ause", "uce x 1e4", "coverage", "coverage, noise")
            },
            flush=True,
        )
    chosen = posteriors["cap, generalised, input too"]
    extra_cost = {
        n: overhead(net, posteriors[n], test.x[0].unsqueeze(0))
        for n in ("cap, generalised", "cap, generalised, input too")
    }
    clean = [float(-10 * (y - a).square().mean().log10()) for y, a in zip(test.y, test.answers, strict=True)]
    settings = {
        "images": f"{len(train)} training, {len(calibrate)} calibration, {len(test.y)} test", "steps": a.steps,
        "psnr of the answers": f"{min(clean):.1f} to {max(clean):.1f} dB, change 0", "peers": json.dumps(versions),
        "frozen parameters": sum(p.numel() for p in net.parameters()), "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    cost = [{"network": n, **c} for n, c in extra_cost.items()]
    write(f"bayescap/{a.name}", {"settings": settings, "rows": lines, "cost": cost})
    if a.pictures:
        pictures(a.pictures, chosen, posteriors["legacy loss"], test)


if __name__ == "__main__":
    main()
