"""The command `bayesvision`; torch is imported only by the commands that need it, when they run."""

import click

from bayesvision.cli.checkpoints import info, validate
from bayesvision.cli.curves.forecast import curves
from bayesvision.cli.curves.replay import replay
from bayesvision.cli.curves.watch import watch
from bayesvision.cli.doctor import doctor
from bayesvision.cli.images import cap
from bayesvision.cli.pretrain import pretrain
from bayesvision.cli.sparse import sparse
from bayesvision.cli.tables.impute import impute
from bayesvision.cli.tables.predict import predict

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bayesvision")
def main() -> None:
    """Bayesian prediction: calibrated answers from tables, priors and checkpoints."""


for command in (predict, impute, cap, sparse, curves, watch, replay, pretrain, validate, info, doctor):
    main.add_command(command)
