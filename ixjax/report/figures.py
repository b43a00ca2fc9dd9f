"""Figures for plotly.js: traces and a layout, without colours.

A trace names its colour by number (`meta.color`); assets/plots.js picks the shade for a light or a
dark page. plotly reads labels as HTML and names come from files, so every label goes through
`label`.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

ROW_PIXELS = 22
PLOT_PIXELS = 260
LOG_TICKS = [float(f"{digit}e{power}") for power in range(-4, 3) for digit in (1, 2, 5)]
FEW_POINTS = 12  # curves with fewer have markers


@dataclasses.dataclass(frozen=True)
class Series:
    """A named line, or a set of points or bars.

    x, y: of equal length; None leaves a gap.
    low, high: ends of the interval around each x (`dots` only).
    color: number of the colour.
    dotted: whether the line is dotted.
    listed: whether it is in the legend.
    sizes: area of each point, in any unit (`calibration` only).
    """

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    color: int = 0
    dotted: bool = False
    listed: bool = True
    sizes: Sequence[float] = ()


def label(text: str) -> str:
    """Return a text that plotly shows verbatim."""
    return html.escape(text, quote=False)


def lines(
    series: Sequence[Series], *, x_title: str, y_title: str, log: bool = False
) -> dict[str, Any]:
    """Return curves over steps; `log`: with a logarithmic y axis."""
    traces = [
        _trace(
            one,
            type="scatter",
            mode="lines+markers" if len(one.x) < FEW_POINTS else "lines",
            x=list(one.x),
            y=list(one.y),
            line={"dash": "dot" if one.dotted else "solid", "width": 2},
        )
        for one in series
    ]
    figure = _figure(traces, x_title=x_title, y_title=y_title, legend=len(series) > 1)
    if log:
        # plotly labels 0.5 and 5 both "5".
        ticks = {"tickvals": LOG_TICKS, "ticktext": [f"{value:g}" for value in LOG_TICKS]}
        figure["layout"]["yaxis"] |= {"type": "log", **ticks}
    return figure


def dots(
    series: Sequence[Series], *, rows: Sequence[str], span: tuple[float, float], x_title: str
) -> dict[str, Any]:
    """Return a row for each name, with a point and its interval for each series.

    Args:
        series: `y` is the number of the row.
        rows: their names, from the top.
        span: range of x.
        x_title: title of the x axis.
    """
    traces = []
    for i, one in enumerate(series):
        shift = 0.6 * ((i + 0.5) / len(series) - 0.5)  # keeps intervals from overlapping
        drawn = [
            (x, y + shift, low, high)
            for x, y, low, high in zip(one.x, one.y, one.low, one.high, strict=True)
            if x is not None
        ]
        traces.append(
            _trace(
                one,
                type="scatter",
                mode="markers",
                x=[x for x, *_ in drawn],
                y=[y for _, y, *_ in drawn],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [0 if high is None else high - x for x, _, _, high in drawn],
                    "arrayminus": [0 if low is None else x - low for x, _, low, _ in drawn],
                    "thickness": 1.5,
                    "width": 4,
                },
                marker={"size": 8},
                hovertemplate="%{x:.3f}",
            )
        )
    height = 110 + ROW_PIXELS * len(rows) * max(1, len(series))
    figure = _figure(traces, x_title=x_title, legend=len(series) > 1, height=height)
    room = 0.05 * (span[1] - span[0]) or 0.05
    figure["layout"]["xaxis"]["range"] = [span[0] - room, span[1] + room]
    figure["layout"]["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [label(name) for name in rows],
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }
    return figure


def bars(
    series: Sequence[Series], *, x_title: str, y_title: str, whole: bool = False
) -> dict[str, Any]:
    """Return bars, grouped if there are several series.

    Args:
        series: the bars.
        x_title: title of the x axis.
        y_title: title of the y axis.
        whole: whether x holds integers; each has a tick.
    """
    traces = [
        _trace(
            one,
            type="bar",
            x=[label(x) if isinstance(x, str) else x for x in one.x],
            y=list(one.y),
        )
        for one in series
    ]
    figure = _figure(traces, x_title=x_title, y_title=y_title, legend=len(series) > 1)
    figure["layout"] |= {"barmode": "group", "bargap": 0.15}
    if whole:
        figure["layout"]["xaxis"]["dtick"] = 1
    return figure


def calibration(series: Sequence[Series]) -> dict[str, Any]:
    """Return predicted against recorded engagement, with the diagonal."""
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "calibrated",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"dash": "dash", "width": 1},
        "meta": {"color": "muted"},
        "hoverinfo": "skip",
    }
    traces = [diagonal]
    for one in series:
        most = max(one.sizes, default=1)
        traces.append(
            _trace(
                one,
                type="scatter",
                mode="lines+markers",
                x=list(one.x),
                y=list(one.y),
                line={"width": 1},
                marker={"size": [7 + 17 * (size / most) ** 0.5 for size in one.sizes]},
                text=[f"{size} dialogues" for size in one.sizes],
                hovertemplate="predicted %{x:.2f}, recorded %{y:.2f}<br>%{text}",
            )
        )
    figure = _figure(
        traces, x_title="predicted engagement", y_title="recorded engagement", height=340
    )
    figure["layout"]["xaxis"]["range"] = figure["layout"]["yaxis"]["range"] = [-0.04, 1.04]
    return figure


def _trace(series: Series, **more: Any) -> dict[str, Any]:
    look = {"meta": {"color": series.color}, "showlegend": series.listed}
    return {"name": label(series.name), **look, **more}


def _figure(
    traces: list[dict[str, Any]],
    *,
    x_title: str,
    y_title: str = "",
    legend: bool = True,
    height: int = PLOT_PIXELS,
) -> dict[str, Any]:
    layout = {
        "height": height,
        "showlegend": legend,
        "xaxis": {"title": {"text": label(x_title)}, "automargin": True},
        "yaxis": {"title": {"text": label(y_title)}, "automargin": True},
    }
    return {"data": traces, "layout": layout}
