"""Two processes under torchrun, of which one gets bad values: both stop when it is the first, and neither otherwise."""

import json
import os
import sys
from pathlib import Path

RISING = [0.9 - 0.6 * (k + 1) ** -0.8 for k in range(12)]
FALLING = [0.7 - 0.05 * k for k in range(12)]
rank = int(os.environ["RANK"])


def with_lightning(values: list[float]) -> int:
    import lightning.pytorch as pl
    from test_lightning import Scripted, loader

    from bayesvision.integrations.lightning import LCPFNStopping

    trainer = pl.Trainer(
        max_epochs=12, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[LCPFNStopping("val_acc")],
    )  # fmt: skip
    trainer.fit(Scripted(values), loader(), loader())
    return trainer.current_epoch


def with_transformers(values: list[float]) -> int:
    from test_transformers import fit

    from bayesvision.integrations.transformers import LCPFNStopping

    return round(fit(values, LCPFNStopping(), epochs=12).state.epoch)


def main() -> None:
    found = []
    for bad in (0, 1):
        values = FALLING if rank == bad else RISING
        epochs = with_lightning(values) if sys.argv[1] == "lightning" else with_transformers(values)
        found.append(epochs)
    Path(f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
