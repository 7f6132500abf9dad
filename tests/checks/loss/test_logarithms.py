"""The logarithm of a softmax or sigmoid in the script's own lines, as the one function that computes both."""

from __future__ import annotations

import pytest

from netdoctor.checks.loss.logarithms import fused
from netdoctor.recording import SourceLine

ONE = {"softmax": "log_softmax", "sigmoid": "logsigmoid"}


def made(log: str, before: str, first: str) -> str:
    return fused(SourceLine("train.py", 2, log), SourceLine("train.py", 1, before), first, ONE[first])


@pytest.mark.parametrize(
    ("log", "before", "first", "code"),
    [
        ("l = torch.log(F.softmax(z / t, dim=1))", "", "softmax", "l = torch.nn.functional.log_softmax(z / t, dim=1)"),
        ("l = z.softmax(1).log()", "", "softmax", "l = torch.nn.functional.log_softmax(z, 1)"),
        ("l = -(y * torch.sigmoid(z).log())", "", "sigmoid", "l = -(y * torch.nn.functional.logsigmoid(z))"),
        ("l = -torch.log(p)", "p = z.softmax(dim=1)", "softmax", "l = -torch.nn.functional.log_softmax(z, dim=1)"),
        (
            "l = -torch.log(p[range(n), y]).mean()",
            "p = F.softmax(z, dim=1)",
            "softmax",
            "l = -torch.nn.functional.log_softmax(z, dim=1)[range(n), y].mean()",
        ),
        (
            "l = -model(x).log()[range(n), y]",
            "return torch.softmax(self.head(x), dim=1)",
            "softmax",
            "return torch.nn.functional.log_softmax(self.head(x), dim=1)\nl = -model(x)[range(n), y]",
        ),
        ("l = -model(x).log()", "nn.Softmax(dim=1),", "softmax", "nn.LogSoftmax(dim=1),\nl = -model(x)"),
        ("l = -(y * q.log())", "nn.Sigmoid(),", "sigmoid", "nn.LogSigmoid(),\nl = -(y * q)"),
        ("return self.nll(p, y)", "p = z.softmax(1)", "softmax", "torch.nn.functional.log_softmax(scores, dim=-1)"),
    ],
)
def test_both_in_one(log: str, before: str, first: str, code: str) -> None:
    assert made(log, before, first) == code


def test_a_name_that_begins_alike_is_another() -> None:
    assert made("l = torch.log(probs)", "p = z.softmax(1)", "softmax").endswith("l = probs")


def test_no_line_gives_the_general_form() -> None:
    assert fused(None, None, "sigmoid", "logsigmoid") == "torch.nn.functional.logsigmoid(scores)"
