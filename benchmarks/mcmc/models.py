"""Posteriors of posteriordb, written once for pyro and for numpyro, which share their words and not their arrays.

Flat priors are normal and half-normal ones with a standard deviation of a million: flat where the data leave any mass.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FLAT = 1e6


class Language(NamedTuple):
    """What a model is written in: `pyro` or `numpyro`, its distributions, and its arrays (torch or jax.numpy)."""

    ppl: Any
    dist: Any
    math: Any
    array: Callable[[Any], Any]
    solve_lower: Callable[[Any, Any], Any]  # L^-1 b for a lower triangular L


class Problem(NamedTuple):
    """Rows of a posterior, its model, and which entries of which site its reference draws are.

    Attributes:
        x, y: the rows.
        model: `model(language, x, y)`, with the observed site "y".
        columns: name in the reference -> the sites' function that gives its draws.
        plain: whether rows are independent normals given the latent variables.
    """

    x: np.ndarray
    y: np.ndarray
    model: Callable[..., Any]
    columns: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]]
    plain: bool = True


def _data(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"data_{name}.json").read_text())


class Regression:
    """y ~ N(X beta, sigma), sampled in units in which data tell each number about equally well.

    X / sqrt n = Q R gives beta = s R^-1 unit and sigma = s level with s the deviation of y: Stan's own advice for
    regressions. A flat prior of beta is a flat one of unit; another one is a factor.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, noise: Callable[..., Any], spread: float = FLAT) -> None:
        self.x, self.y, self.noise, self.spread, self.scale = x, y, noise, spread, float(y.std())
        self.back = self.scale * np.linalg.inv(np.linalg.qr(x / len(x) ** 0.5)[1])

    def __call__(self, language: Language, x: Any, y: Any = None) -> Any:
        ppl, dist = language.ppl, language.dist
        unit = ppl.sample("unit", dist.Normal(language.array([0.0] * len(self.back)), FLAT).to_event(1))
        beta = language.array(self.back) @ unit
        if self.spread < FLAT:
            ppl.factor("prior", -(beta**2).sum() / (2 * self.spread**2))
        sigma = self.scale * ppl.sample("level", self.noise(dist, self.scale))
        with ppl.plate("rows", len(x)):
            return ppl.sample("y", dist.Normal(x @ beta, sigma), obs=y)

    def problem(self, names: list[str] | None = None) -> Problem:
        names = names or [f"beta[{k + 1}]" for k in range(len(self.back))]
        columns: dict[str, Any] = {
            name: lambda sites, k=k: sites["unit"] @ self.back[k] for k, name in enumerate(names)
        }
        return Problem(self.x, self.y, self, columns | {"sigma": lambda sites: self.scale * sites["level"]})


def _flat(dist: Any, scale: float) -> Any:
    return dist.HalfNormal(FLAT)


def _cauchy(dist: Any, scale: float) -> Any:
    return dist.HalfCauchy(2.5 / scale)


def _design(*columns: Any) -> np.ndarray:
    columns = [np.asarray(column, dtype=np.float64) for column in columns]
    return np.stack([np.ones_like(columns[0]), *columns], -1)


def kidscore(folder: Path, interaction: bool) -> Problem:
    data = _data(folder, "kidiq")
    school, iq = np.asarray(data["mom_hs"], float), np.asarray(data["mom_iq"], float)
    x = _design(school, iq, school * iq) if interaction else _design(school, iq)
    return Regression(x, np.asarray(data["kid_score"], float), _cauchy).problem()


def earnings(folder: Path, log: bool) -> Problem:
    data = _data(folder, "earnings")
    y = np.asarray(data["earn"], float)
    return Regression(_design(data["height"]), np.log(y) if log else y, _flat).problem()


def logmesquite(folder: Path) -> Problem:
    data = _data(folder, "mesquite")
    sizes = [np.log(data[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    x = _design(*sizes, data["group"])
    return Regression(x, np.log(data["weight"]), _flat).problem()


def blr(folder: Path) -> Problem:
    data = _data(folder, "sblrc")
    x, y = np.asarray(data["X"], float), np.asarray(data["y"], float)
    return Regression(x, y, lambda dist, scale: dist.HalfNormal(10.0 / scale), 10.0).problem()


def autoregression(folder: Path) -> Problem:
    """Order 5: its rows are the values at t > 5, its columns the five before each."""
    data = _data(folder, "arK")
    y, order = np.asarray(data["y"], float), data["K"]
    lags = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    names = ["alpha", *(f"beta[{k}]" for k in range(1, order + 1))]
    return Regression(_design(*lags), y[order:], _cauchy, 10.0).problem(names)


def eight_schools(folder: Path) -> Problem:
    """Non-centred; a row's columns are the school and the standard error of its effect."""
    data = _data(folder, "eight_schools")
    x = np.stack([np.arange(8.0), np.asarray(data["sigma"], float)], -1)

    def model(language: Language, x: Any, y: Any = None) -> Any:
        ppl, dist = language.ppl, language.dist
        mu, tau = ppl.sample("mu", dist.Normal(0.0, 5.0)), ppl.sample("tau", dist.HalfCauchy(5.0))
        unit = ppl.sample("unit", dist.Normal(language.array([0.0] * 8), 1.0).to_event(1))
        school = language.array(np.arange(8.0)) == x[:, :1]  # which of the eight
        with ppl.plate("rows", len(x)):
            return ppl.sample("y", dist.Normal(mu + tau * (unit * school).sum(-1), x[:, 1]), obs=y)

    columns: dict[str, Any] = {
        f"theta[{k + 1}]": lambda sites, k=k: sites["mu"] + sites["tau"] * sites["unit"][:, k] for k in range(8)
    }
    columns |= {name: lambda sites, name=name: sites[name] for name in ("mu", "tau")}
    return Problem(x, np.asarray(data["y"], float), model, columns)


def _sites(*names: str) -> dict[str, Any]:
    return {name: lambda sites, name=name: sites[name] for name in names}


def _recursion(coefficient: Any, length: int, language: Language) -> Any:
    """The matrix of s_t + coefficient s_(t-1), lower bidiagonal."""
    return language.array(np.eye(length)) + coefficient * language.array(np.eye(length, k=-1))


def arma(folder: Path) -> Problem:
    """err_t + theta err_(t-1) = y_t - mu - phi y_(t-1), with err_1 = y_1 - mu - phi mu: one triangular system."""
    y = np.asarray(_data(folder, "arma")["y"], float)

    def model(language: Language, x: Any, y: Any = None) -> Any:
        ppl, dist = language.ppl, language.dist
        mu, phi = ppl.sample("mu", dist.Normal(0.0, 10.0)), ppl.sample("phi", dist.Normal(0.0, 2.0))
        theta, sigma = ppl.sample("theta", dist.Normal(0.0, 2.0)), ppl.sample("sigma", dist.HalfCauchy(2.5))
        first = language.array((np.arange(len(x)) == 0).astype(float))
        right = x[:, 1] - mu - phi * (x[:, 0] + first * mu)  # columns: the value before (0 for the first), the value
        errors = language.solve_lower(_recursion(theta, len(x), language), right)
        with ppl.plate("rows", len(x)):
            return ppl.sample("y", dist.Normal(x[:, 1] - errors, sigma), obs=y)

    before = np.concatenate([[0.0], y[:-1]])
    return Problem(np.stack([before, y], -1), y, model, _sites("mu", "phi", "theta", "sigma"), plain=False)


def garch(folder: Path) -> Problem:
    """sigma_t^2 - b1 sigma_(t-1)^2 = a0 + a1 (y_(t-1) - mu)^2, sigma_1 given: one triangular system."""
    data = _data(folder, "garch")
    y, start = np.asarray(data["y"], float), data["sigma1"] ** 2

    def model(language: Language, x: Any, y: Any = None) -> Any:
        ppl, dist = language.ppl, language.dist
        mu, level = ppl.sample("mu", dist.Normal(0.0, FLAT)), ppl.sample("alpha0", dist.HalfNormal(FLAT))
        alpha = ppl.sample("alpha1", dist.Uniform(0.0, 1.0))
        share = ppl.sample("share", dist.Uniform(0.0, 1.0))  # of 1 - alpha1; flat in b1 for the factor below
        ppl.factor("flat", language.math.log(1 - alpha))
        first = language.array((np.arange(len(x)) == 0).astype(float))
        right = first * start + (1 - first) * (level + alpha * (x[:, 0] - mu) ** 2)
        variance = language.solve_lower(_recursion(-share * (1 - alpha), len(x), language), right)
        with ppl.plate("rows", len(x)):
            return ppl.sample("y", dist.Normal(mu, variance**0.5), obs=y)

    columns = _sites("mu", "alpha0", "alpha1") | {"beta1": lambda sites: sites["share"] * (1 - sites["alpha1"])}
    return Problem(np.concatenate([[0.0], y[:-1]])[:, None], y, model, columns, plain=False)


def process(folder: Path) -> Problem:
    data = _data(folder, "gp_pois_regr")

    def model(language: Language, x: Any, y: Any = None) -> Any:
        ppl, dist = language.ppl, language.dist
        rho, alpha = ppl.sample("rho", dist.Gamma(25.0, 4.0)), ppl.sample("alpha", dist.HalfNormal(2.0))
        sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
        covariance = alpha**2 * language.math.exp(-((x - x[:, 0]) ** 2) / (2 * rho**2))
        law = dist.MultivariateNormal(0 * x[:, 0], covariance + sigma * language.array(np.eye(len(x))))
        return ppl.sample("y", law, obs=y)

    x = np.asarray(data["x"], float)[:, None]
    return Problem(x, np.asarray(data["y"], float), model, _sites("rho", "alpha", "sigma"), plain=False)


PROBLEMS: dict[str, Callable[[Path], Problem]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_momhsiq": lambda folder: kidscore(folder, interaction=False),
    "kidiq-kidscore_interaction": lambda folder: kidscore(folder, interaction=True),
    "earnings-earn_height": lambda folder: earnings(folder, log=False),
    "earnings-logearn_height": lambda folder: earnings(folder, log=True),
    "mesquite-logmesquite": logmesquite,
    "sblrc-blr": blr,
    "arK-arK": autoregression,
    "arma-arma11": arma,
    "garch-garch11": garch,
    "gp_pois_regr-gp_regr": process,
}


def reference(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Reference draws [10, 1,000] by the names of their columns."""
    stored = np.load(folder / f"draws_{name}.npz")
    return {str(column): stored["draws"][..., k].astype(np.float64) for k, column in enumerate(stored["names"])}
