"""Why an operation made NaN or Inf, and its numerically safe form: a table that grows by rows.

The rows stand in `steep_forms` and `overflow_forms`. The first row that fits an origin speaks, so special rows stand
before general ones; the last one fits everything.
"""

from __future__ import annotations

from dataclasses import replace

from netdoctor.checks.numerics import operations as op
from netdoctor.checks.numerics.form import Form
from netdoctor.checks.numerics.idioms import safer
from netdoctor.checks.numerics.overflow_forms import ARITHMETIC, BOUNDED_FUNCTIONS, EXPONENTIALS, LOSSES
from netdoctor.checks.numerics.rewriting import denominator, rewrite
from netdoctor.checks.numerics.steep_forms import DIVISIONS, LOGARITHMS, ROOTS_AND_POWERS
from netdoctor.finding import Fix
from netdoctor.recording import Origin, SourceLine

TABLE: tuple[Form, ...] = (
    *LOGARITHMS,
    *ROOTS_AND_POWERS,
    *DIVISIONS,
    *EXPONENTIALS,
    *BOUNDED_FUNCTIONS,
    *LOSSES,
    *ARITHMETIC,
)


MARGINS = (1e-4, 1e-2)  # larger ones to be tried in place of the usual {eps}; the root of {tiny}


def match(origin: Origin) -> Form:
    """The first row for this origin; the last row of the table fits every origin."""
    name = op.canonical(origin.operation)
    if name == "div":  # the recorded upstream may be that of the numerator; the line tells which is which
        line = origin.source.text if origin.source is not None else ""
        origin = replace(origin, upstream=denominator(line) or origin.upstream)
    return next(form for form in TABLE if (name in form.operations or not form.operations) and form.when(origin))


def why(origin: Origin) -> str:
    """Why the operation made it, in one or two sentences."""
    return match(origin).why.format_map(words(origin))


def prescribe(origin: Origin, margin: float | None = None) -> Fix:
    """The safe form of this operation: the user's own line rewritten where it can be, else the general form. `margin` takes the
    place of the usual {eps}."""
    form, known = match(origin), words(origin, margin)
    code = form.code.format_map(known)
    treatment = "clip-gradient-norm" if form.ordinary else "safe-form"
    return Fix(treatment, form.says.format_map(known), code if form.ordinary else _own_lines(origin, margin) or code)


def culprits(origin: Origin) -> tuple[Origin, ...]:
    """The origin, and what would break next once it is mended, each as an origin of its own."""
    others = (
        replace(
            origin, operation=o.operation, source=o.source, inputs=o.inputs, upstream=o.upstream, also=(), downstream=()
        )
        for o in origin.also
    )
    return (origin, *(other for other in others if not match(other).ordinary))


def place_of(origin: Origin) -> tuple[str, SourceLine | None]:
    """The operation (canonical) that is to be edited, and its line: what made the guilty operand, where the form says so."""
    edit = match(origin).edit
    if edit is not None and edit.of:
        return edit.of, origin.upstream_source
    return op.canonical(origin.operation), origin.source


def _own_lines(origin: Origin, margin: float | None = None) -> str | None:
    """The user's lines rewritten, one below the other; None where the line of the origin itself cannot be."""
    lines: dict[tuple[str, int], str] = {}
    for number, each in enumerate(culprits(origin)):
        operation, source = place_of(each)
        key = ("", 0) if source is None else (source.file, source.line)
        text = lines.get(key) or ("" if source is None else source.text)
        better = _own_line(text, operation, match(each), words(each, margin)) if text else None
        if better is None and number == 0:
            return None
        if better is not None:
            lines[key] = better
    return "\n".join(lines.values())


def _own_line(text: str, operation: str, form: Form, known: dict[str, str]) -> str | None:
    better = safer(text, operation)
    if better is not None or form.edit is None:
        return better
    return rewrite(text, operation, form.edit, **known)


def words(origin: Origin, margin: float | None = None) -> dict[str, str]:
    """What templates may use: {op}, {low}, {high}, {zeros}, {low2}, {high2} (second operand), {dtype}, {eps} and more.

    {eps} keeps an argument off 0 where the function is steep like 1/x, {tiny} inside a root, {edge} off the ends of
    [-1, 1], {top} bounds the argument of exp. Each is above the resolution of the operation's format.
    """
    dtype = op.dtype_of(origin)
    half = dtype in {"float16", "bfloat16"}
    found = {"op": op.plain(origin.operation) or "the operation", "dtype": dtype, "kind": origin.kind}
    found |= {"largest": f"{op.LARGEST[dtype]:.3g}", "limit": f"{op.EXP_LIMIT[dtype]:.1f}"}
    found |= {"eps": "1e-4" if half else "1e-8", "tiny": "1e-6" if half else "1e-12"}
    # exp(20) is 5e8: larger factors are no use in a loss, and squares and sums of them stay finite in float32
    found |= {"edge": "1e-2" if half else "1e-6", "top": "10.0" if half else "20.0"}
    if margin is not None:
        found |= {"eps": f"{margin:g}", "tiny": f"{margin**2:g}"}
    found["dim"] = op.normalised_over(origin) or "-1"
    found["ignore"] = f"{float(origin.attributes.get('ignore_index', -100)):.0f}"
    for index, suffix in ((0, ""), (1, "2")):
        item = op.operand(origin, index)
        found |= {
            f"low{suffix}": f"{item.low:.3g}" if item else "?",
            f"high{suffix}": f"{item.high:.3g}" if item else "?",
        }
        found[f"zeros{suffix}"] = str(item.zeros) if item and item.zeros else "some"
    return found
