"""`Trainer(..., callbacks=[NetdoctorCallback()])` for Hugging Face: `pip install netdoctor[transformers]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from netdoctor.finding import Finding
from netdoctor.integrations.attending import Attending
from netdoctor.judging import Options
from netdoctor.report import Report


class NetdoctorCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # Any where transformers is not installed
    """Watches `train` and reports when it ends, on stderr and to the files asked for; `report` holds it.

    `options`, `on_finding` and `writer` are those of `netdoctor.watch`; `html`, `json` and `save` are paths. In a run
    of several processes the first one reports. A training that ends by an exception is reported by `report` only.
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
        self._attending = Attending(options, on_finding, writer, quiet, {"html": html, "json": json, "save": save})

    @property
    def report(self) -> Report:
        """The report on the last `train`, or on what was seen so far."""
        return self._attending.report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """With model and optimizer in place."""
        optimizer = given.get("optimizer")
        self._attending.begin([given["model"]], [] if optimizer is None else [optimizer])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """The trainer's own numbers (eval_loss and the like) become scalars of the recording."""
        logs = given.get("logs") or {}
        self._attending.log({name: value for name, value in logs.items() if name.startswith("eval_")})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """The report."""
        self._attending.end()
