from __future__ import annotations

import pytest

from netdoctor.checks.training.optimizer_line import variable, with_limit, with_lr
from netdoctor.recording import Event, Optimizer, Recording, SourceLine


def optimizer(text: str | None) -> Optimizer:
    return Optimizer(0, "SGD", ({"lr": 1.0},), (), None if text is None else SourceLine("t.py", 1, text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("opt = SGD(net.parameters(), lr=1.0)", "opt = SGD(net.parameters(), lr=0.01)"),
        (
            "opt = SGD(net.parameters(), lr = args.lr, momentum=0.9)",
            "opt = SGD(net.parameters(), lr = 0.01, momentum=0.9)",
        ),
        ("opt = SGD(p, lr=float(c['a, b']), nesterov=True)", "opt = SGD(p, lr=0.01, nesterov=True)"),
        ("opt = SGD(net.parameters(), 0.5)", "opt = SGD(net.parameters(), 0.01)"),
        ("opt = SGD(net.parameters(), LR, momentum=0.9)", "opt = SGD(net.parameters(), 0.01, momentum=0.9)"),
        ("lr=1.0,", "lr=0.01,"),
    ],
)
def test_the_users_line_with_another_rate(text, code):
    assert with_lr(optimizer(text), 0.01) == code


@pytest.mark.parametrize(("written", "code"), [("0.4", "0.04"), ("0.05", "0.005"), ("args.lr", "0.005")])
def test_a_rate_that_a_schedule_makes_of_the_number_in_the_line(written, code):
    """The script ran at 0.05, and is to run at 0.005."""
    assert with_lr(optimizer(f"opt = Adam(net.parameters(), lr={written})"), 0.005, 0.05).endswith(f"lr={code})")


@pytest.mark.parametrize(
    "text", [None, "", "opt = make()", "opt = Adam(net.parameters(), betas=(0.9, 0.9))", "opt = SGD("]
)
def test_a_line_without_a_rate_gives_the_general_form(text):
    code = with_lr(optimizer(text), 3e-4)
    assert code == "for group in optimizer.param_groups:\n    group['lr'] = 0.0003"
    compile(code, "fix", "exec")


GENERAL = "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=4)"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("norm = clip_grad_norm_(net.parameters(), cfg['max', 1])", "norm = clip_grad_norm_(net.parameters(), 4)"),
        (
            "nn.utils.clip_grad_norm_(self.net.parameters(), max_norm = c)",
            "nn.utils.clip_grad_norm_(self.net.parameters(), max_norm = 4)",
        ),
        ("clip_grad_norm_([w, b], 0.01, norm_type=2)", "clip_grad_norm_([w, b], 4, norm_type=2)"),
        ("clip_grad_norm_(", GENERAL),
        ("accelerator.clip(net, 1.0)", GENERAL),
        (None, GENERAL),
    ],
)
def test_the_users_line_with_another_limit(text, code):
    assert with_limit(None if text is None else SourceLine("t.py", 3, text), 4.0) == code


def test_the_variable_is_read_from_the_step_or_the_construction():
    recording = Recording()
    assert variable(recording) == "optimizer"
    recording.optimizers.append(optimizer("self.opt = SGD(p, lr=1)"))
    assert variable(recording) == "self.opt"
    recording.events.append(Event(0, "step", source=SourceLine("t.py", 9, "trainer.sgd.step()")))
    assert variable(recording) == "trainer.sgd"


def test_a_loss_scaler_is_not_the_optimizer():
    recording = Recording(events=[Event(0, "step", source=SourceLine("t.py", 9, "grad_scaler.step(self.opt)"))])
    assert variable(recording) == "self.opt"
