"""The limit that a line of code clips gradients at, which the trial of `raise-clip` takes from it."""

from __future__ import annotations

import pytest

from netdoctor.experiments.treatments.optimization import _limit


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=3)", 3.0),
        ("nn.utils.clip_grad_norm_(net.parameters(), 0.8)", 0.8),
        ("clip_grad_norm_(self.net.parameters(), 1e-3, norm_type=2.0)", 1e-3),
        ("nn.utils.clip_grad_value_(net.parameters(), clip_value=0.2)", 0.2),
        ("nn.utils.clip_grad_value_(net.parameters(), .5)", 0.5),
        ("nn.utils.clip_grad_norm_(net.parameters(), cfg.clip)", None),
    ],
)
def test_by_name_and_by_place(code: str, limit: float | None) -> None:
    assert _limit(code) == limit
