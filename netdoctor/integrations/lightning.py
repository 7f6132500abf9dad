"""`Trainer(callbacks=[NetdoctorCallback()])` for Lightning: `pip install netdoctor[lightning]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from netdoctor.finding import Finding
from netdoctor.integrations.attending import Attending
from netdoctor.judging import Options
from netdoctor.report import Report


class NetdoctorCallback(Callback):  # type: ignore[misc, unused-ignore]  # Any where lightning is not installed
    """Watches `fit` and reports when it ends, on stderr and to the files asked for; `report` holds it.

    `options`, `on_finding` and `writer` are those of `netdoctor.watch`; `html`, `json` and `save` are paths. In a run
    of several processes the first one reports.
    """

    def __init__(
        self,
        options: Options | None = None,
        *,
        on_finding: str | Callable[[Finding], object] = "ignore",
        writer: Any = None,
        quiet: bool = False,
        html: str | None = None,
        json: str | None = None,
        save: str | None = None,
    ) -> None:
        super().__init__()
        self._attending = Attending(options, on_finding, writer, quiet, {"html": html, "json": json, "save": save})

    @property
    def report(self) -> Report:
        """The report on the last `fit`."""
        return self._attending.report

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the sanity check, with model and optimizers in place."""
        self._attending.begin([pl_module], trainer.optimizers)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics that the user logs of an evaluation become scalars of the recording."""
        self._attending.log({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The report."""
        self._attending.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The report on what was seen until then."""
        self._attending.end(f"raised {type(exception).__name__}: {exception}")
