from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.structure.unaligned_width import UnalignedWidth
from netdoctor.finding import Finding, Severity
from tests.checks.builders import Builder


def judged(
    *shapes: tuple[int, ...], dtype: str = "bfloat16", device: str = "cuda:0", name: str = "linear"
) -> list[Finding]:
    build = Builder()
    for number, shape in enumerate(shapes):
        build.linear(str(number), line=5 + number)
        weight = build.weight(f"{number}.weight", shape)
        made = build.operation(
            name, build.value((8, shape[1]), dtype), weight, module=str(number), shape=(8, shape[0]), dtype=dtype
        )
    recording = build.backward(build.operation("sum", made, shape=())).done()
    recording.header = replace(recording.header, device=device)
    return list(UnalignedWidth().judge(recording))


def test_the_widest_is_named_with_the_next_multiple() -> None:
    (finding,) = judged((100, 64), (64, 64), (50257, 64))
    assert finding.severity is Severity.ADVICE
    assert finding.places == ("2", "0")
    assert finding.location.line == 7
    assert finding.fixes[0].code == "50264"


@pytest.mark.parametrize(
    ("shape", "fires"),
    [
        ((128, 64), False),
        ((128, 65), True),
        ((65, 128), True),
        ((10, 128), False),  # ten classes
        ((63, 128), False),
        ((128, 3, 7, 7), False),
        ((100, 3, 7, 7), True),
    ],
)
def test_sizes(shape: tuple[int, ...], fires: bool) -> None:
    assert bool(judged(shape, name="conv2d" if len(shape) == 4 else "linear")) is fires


def test_silent_on_cpus_and_in_full_precision() -> None:
    assert judged((100, 64), device="cpu") == []
    assert judged((100, 64), dtype="float32") == []
