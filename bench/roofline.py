"""The profile as text and as plots: each operator's time, and how close it comes to the machine's limits."""

from collections.abc import Iterator

from markupsafe import Markup

from piston.bench.limits import Limits
from piston.bench.profile import Operator, Phase, Profile
from piston.bench.table import grid
from piston.core.report.chart import Bar, Chart, Curve, bars, curves
from piston.core.report.page import figure

_SHOWN = 14  # operators; the rest is summed
_POINTS = 40


def profile_lines(found: Profile) -> Iterator[str]:
    """Tables for the terminal."""
    limits = found.limits
    int8 = "" if limits.int8_ops_per_s is None else f", {limits.int8_ops_per_s / 1e12:.2f} TOP/s int8"
    yield (
        f"limits of this machine: {limits.read_bytes_per_s / 1e9:.1f} GB/s read, "
        f"{limits.float_ops_per_s / 1e12:.2f} TFLOP/s float32{int8}"
    )
    yield f"({limits.how})"
    for phase in found.phases:
        yield ""
        yield f"{phase.name}: {phase.seconds * 1e3:.2f} ms for {phase.num_tokens:,} tokens"
        heads = ["operator", "calls", "ms", "share", "MB", "Gop", "at best, ms", "limit / time"]
        yield from grid(heads, [_row(operator, phase) for operator in _shown(phase)])


def roofline_figures(found: Profile) -> Iterator[Markup]:
    """Time by operator for each phase, and all products under the roof."""
    for phase in found.phases:
        rows = [
            Bar(
                operator.op,
                "own",
                operator.seconds * 1e3,
                None,
                None,
                f"{operator.seconds * 1e3:.2f} ms, {_share(operator)} of the limit",
            )
            for operator in _shown(phase)
        ]
        chart = Chart(
            f"profile-{phase.name}",
            f"Time of a {phase.name} step by operator",
            "; ".join(f"{row.name} {row.text}" for row in rows[:5]),
            "milliseconds",
            "",
        )
        caption = (
            f"{phase.seconds * 1e3:.2f} ms for {phase.num_tokens:,} tokens; the share is of what the machine's limits "
            "allow at best. Profiling itself costs time."
        )
        yield figure(f"A {phase.name} step by operator", bars(chart, rows), caption)
    yield from _roof(found)


def _roof(found: Profile) -> Iterator[Markup]:
    points = [(phase, op) for phase in found.phases for op in phase.operators if op.num_ops and op.num_bytes]
    if not points:
        return
    limits = found.limits
    intensities = [op.num_ops / op.num_bytes for _, op in points]
    low, high = min([0.1, *intensities]), max([1000.0, *intensities])
    xs = [low * (high / low) ** (index / (_POINTS - 1)) for index in range(_POINTS)]
    roofs = [Curve("float32 roof", "c5", xs, [_attainable(x, limits.float_ops_per_s, limits) for x in xs], marks=False)]
    if limits.int8_ops_per_s is not None:
        ys = [_attainable(x, limits.int8_ops_per_s, limits) for x in xs]
        roofs.append(Curve("int8 roof", "c1", xs, ys, marks=False))
    dots = [
        Curve(
            f"{phase.name} {op.op}",
            "own" if phase.name == "decode" else "c2",
            [op.num_ops / op.num_bytes],
            [op.num_ops / op.seconds / 1e9],
        )
        for phase, op in points
        if op.seconds
    ]
    named = "; ".join(f"{dot.name} {dot.ys[0]:,.0f} Gop/s at {dot.xs[0]:,.1f} op/byte" for dot in dots)
    chart = Chart("roofline", "Roofline", named, "operations per byte, logarithmic", "Gop/s, logarithmic")
    caption = f"Products of decode and prefill under what the machine can do ({limits.how}). {named}."
    yield figure("Roofline", curves(chart, [*roofs, *dots], log_x=True, log_y=True), caption)


def _attainable(intensity: float, ops_per_s: float, limits: Limits) -> float:
    """Gop/s at so many operations a byte."""
    return min(ops_per_s, intensity * limits.read_bytes_per_s) / 1e9


def _shown(phase: Phase) -> list[Operator]:
    first, rest = phase.operators[:_SHOWN], phase.operators[_SHOWN:]
    between = phase.seconds - sum(operator.seconds for operator in phase.operators)
    rows = list(first)
    if rest:
        rows.append(_sum_of(f"{len(rest)} more", rest))
    if between > 0:
        rows.append(Operator(op="between nodes", calls=0, seconds=between, num_bytes=0, num_ops=0, limit=0))
    return rows


def _sum_of(name: str, operators: tuple[Operator, ...]) -> Operator:
    return Operator(
        op=name,
        calls=sum(item.calls for item in operators),
        seconds=sum(item.seconds for item in operators),
        num_bytes=sum(item.num_bytes for item in operators),
        num_ops=sum(item.num_ops for item in operators),
        limit=sum(item.limit for item in operators),
    )


def _row(operator: Operator, phase: Phase) -> list[str]:
    return [
        operator.op,
        f"{operator.calls:.0f}",
        f"{operator.seconds * 1e3:.3f}",
        f"{operator.seconds / phase.seconds:.1%}",
        f"{operator.num_bytes / 1e6:.1f}",
        f"{operator.num_ops / 1e9:.2f}",
        f"{operator.limit * 1e3:.3f}",
        _share(operator),
    ]


def _share(operator: Operator) -> str:
    return f"{operator.limit / operator.seconds:.0%}" if operator.seconds and operator.limit else "-"
