"""The check `padding-share`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.scale_trial import location
from netdoctor.finding import Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class PaddingShare(Check):
    """Most of the tokens in a batch are padding.

    What it is: sequences of very different length in one batch, or all padded to a fixed maximum.
    Why it hurts: most of the time goes into tokens that mean nothing; and where they are not masked, most of the signal.
    How it is decided: in a model input of whole numbers with one sequence per row, at least half of all sampled values
    are 0, the usual padding id, and the last position is 0 at least twice as often as the first.
    When it stays silent: other padding ids; one-hot and multi-hot tables; sparse counts. Advice only.
    Fix: batches of sequences of like length, padded to their own longest.
    Sources: Hugging Face's documentation of dynamic padding; advice on throughput in PyTorch's performance guide.
    """

    name = "padding-share"

    share: float = 0.5  # of the tokens: then batches by length halve the work
    columns: int = 4  # positions: fewer are no sequence
    largest: float = 3.0  # token id: tables of zeros and ones are no tokens

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for facts in recording.inputs:
            columns = facts.columns
            tokens = facts.integral and facts.dtype.startswith("int") and len(facts.shape) == 2 and facts.rows > 0
            if not tokens or columns.zeros.size < self.columns or columns.high.max() < self.largest:
                continue
            share, first, last = float(columns.zeros.mean()), float(columns.zeros[0]), float(columns.zeros[-1])
            low = float(columns.low.min())
            if low == 0 and share >= self.share and max(first, last) >= 2 * min(first, last):
                yield Finding(
                    self.name,
                    f"{100 * share:.0f} % of the tokens in a batch are padding",
                    Severity.ADVICE,
                    f"Sequences are padded to {facts.shape[1]} positions; at the end {100 * max(first, last):.0f} % are 0.",
                    location(facts),
                    (Evidence("share of token 0", 100 * share, "≥", 100 * self.share, "%"),),
                    (
                        Fix(
                            "bucket-by-length",
                            "Sort by length before making batches, and pad each batch to its own longest.",
                            "torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)",
                            Reach.RUN,
                        ),
                    ),
                    first_step=0,
                    share=share,
                )
                return
