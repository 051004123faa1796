#!/usr/bin/env python3
"""Draw a Grafana dashboard's panels from a running Prometheus; no Grafana. Reads JSON and HTTP, writes one picture.

Knows the kinds of panels that k8s/monitoring/dashboards use (row, stat, timeseries, heatmap) and refuses others. Exits
with 1 if a query has no data, after it has written the picture and named the panel; with 2 for bad input.
"""

import argparse
import json
import math
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.dates

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLUMNS = 24  # of Grafana's grid
CELL_INCHES = (0.72, 0.36)
POINTS = 240  # asked of each query over the time range, at most
QUERY_SECONDS = 30.0
PREFIXES = {
    "s": (
        (86400.0, "days", 1 / 86400),
        (3600.0, "hours", 1 / 3600),
        (60.0, "mins", 1 / 60),
        (1.0, "s", 1.0),
        (1e-3, "ms", 1e3),
        (0.0, "µs", 1e6),
    ),
    "": ((1e6, "M", 1e-6), (1e4, "k", 1e-3)),
}
SUFFIXES = {"reqps": " req/s", "ops": " /s"}


class InputError(Exception):
    """Names what was given, and the remedy."""


@dataclass(frozen=True)
class Series:
    legend: str
    seconds: np.ndarray  # Unix time, (points,)
    values: np.ndarray  # (points,), NaN where the query has none

    def has_data(self) -> bool:
        return bool(np.isfinite(self.values).any())


@dataclass(frozen=True)
class Source:
    """A Prometheus, a time range in Unix seconds, and what replaces Grafana's variables."""

    address: str
    start: float
    end: float
    scrape_seconds: float
    variables: dict[str, str]

    @property
    def step(self) -> float:
        return max(self.scrape_seconds, (self.end - self.start) / POINTS)

    def filled(self, query: str) -> str:
        """The query with Grafana's variables replaced, in Grafana's way; InputError for one without a value."""
        known = {
            "__interval": _duration(self.step),
            "__rate_interval": _duration(max(self.step + self.scrape_seconds, 4 * self.scrape_seconds)),
            "__range": _duration(self.end - self.start),
            **self.variables,
        }

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in known:
                raise InputError(f"variable ${name} has no value: give --variable {name}=VALUE")
            return known[name]

        return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, query)

    def series(self, target: dict[str, Any]) -> list[Series]:
        query = self.filled(target["expr"])
        if target.get("instant"):
            found = self._ask("query", query=query, time=self.end)
        else:
            found = self._ask("query_range", query=query, start=self.start, end=self.end, step=self.step)
        grid = np.array([self.end]) if target.get("instant") else np.arange(self.start, self.end + 1e-6, self.step)
        return [self._on_grid(one, target["legendFormat"], grid) for one in found]

    def _on_grid(self, one: dict[str, Any], legend: str, grid: np.ndarray) -> Series:
        pairs = one.get("values") or [one["value"]]
        values = np.full(len(grid), np.nan)
        for moment, value in pairs:
            values[int(np.abs(grid - moment).argmin())] = float(value)
        values[~np.isfinite(values)] = np.nan
        return Series(re.sub(r"\{\{(\w+)\}\}", lambda m: one["metric"].get(m[1], ""), legend), grid, values)

    def _ask(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode(fields).encode()
        try:
            address = f"{self.address}/api/v1/{kind}"
            with urllib.request.urlopen(address, asked, timeout=QUERY_SECONDS) as answer:  # noqa: S310, checked in parse()
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            raise InputError(f"Prometheus refuses {fields['query']}: {error.read().decode()}") from None
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--prometheus {self.address}: {error}; give the address of a running one") from None


def _duration(seconds: float) -> str:
    return f"{max(1, round(1000 * seconds))}ms"


def shown(value: float, unit: str) -> str:
    """A value as Grafana writes it in that unit, to three digits."""
    if not math.isfinite(value):
        return "no data"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    for least, suffix, factor in PREFIXES["s" if unit == "s" else ""]:
        if value and abs(value) >= least:
            return f"{value * factor:.3g} {suffix}"
    return f"{value:.3g}{SUFFIXES.get(unit, '')}"


# -- panels ----------------------------------------------------------------------------------------------------------


def draw_stat(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    axes.axis("off")
    value = found[0].values[-1] if found else math.nan
    text = shown(float(value), panel["fieldConfig"]["defaults"]["unit"])
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=18, transform=axes.transAxes)


def draw_timeseries(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    moments = [datetime.fromtimestamp(second, UTC) for second in found[0].seconds] if found else []
    axes.set_prop_cycle(color=matplotlib.colormaps["tab10" if len(found) <= 10 else "tab20"].colors)
    if defaults["custom"]["stacking"]["mode"] == "normal":
        # Where a series has nothing, nothing is stacked.
        layers = [np.nan_to_num(one.values) for one in found]
        if layers:
            axes.stackplot(moments, layers, labels=[one.legend for one in found], alpha=0.75)  # type: ignore[arg-type]
    else:
        for one in found:
            axes.plot(moments, one.values, label=one.legend, linewidth=1, clip_on=False)  # type: ignore[arg-type]
    if "min" in defaults or "max" in defaults:
        low, high = axes.get_ylim()
        axes.set_ylim(defaults.get("min", low), defaults.get("max", high))
    for limit in _thresholds(defaults):
        axes.axhline(limit, color="tab:red", linewidth=0.8, linestyle="--")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
    _time_axis(axes, source)
    if found:
        columns = min(panel["gridPos"]["w"] // 2, len(found))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=columns, fontsize=6, frameon=False)


def _thresholds(defaults: dict[str, Any]) -> list[float]:
    if defaults["custom"].get("thresholdsStyle", {}).get("mode") != "line":
        return []
    return [step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None]


def draw_heatmap(axes: Axes, panel: dict[str, Any], found: list[Series], source: Source) -> None:
    """Counts up to each bound become counts between bounds; every bucket is equally high."""
    found = sorted((one for one in found if one.legend != "+Inf"), key=lambda one: float(one.legend))
    if found:
        up_to = np.array([one.values for one in found])
        counts = np.diff(up_to, axis=0, prepend=0.0)
        moments = [datetime.fromtimestamp(second, UTC) for second in found[0].seconds]
        mesh = axes.pcolormesh(moments, np.arange(len(found)) + 0.5, np.maximum(counts, 0.0), shading="nearest")  # type: ignore[arg-type]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axes.set_yticks(range(1, len(found) + 1), [shown(float(one.legend), unit) for one in found])
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01)
        bar.ax.tick_params(labelsize=6)
    _time_axis(axes, source)


def _time_axis(axes: Axes, source: Source) -> None:
    axes.set_xlim(datetime.fromtimestamp(source.start, UTC), datetime.fromtimestamp(source.end, UTC))  # type: ignore[arg-type]
    axes.xaxis.set_major_locator(matplotlib.dates.AutoDateLocator(minticks=3, maxticks=7))
    short = "%H:%M:%S" if source.end - source.start < 300 else "%H:%M"
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter(short, tz=UTC))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.25)


DRAW: dict[str, Callable[[Axes, dict[str, Any], list[Series], Source], None]] = {
    "stat": draw_stat,
    "timeseries": draw_timeseries,
    "heatmap": draw_heatmap,
}


def draw(dashboard: dict[str, Any], source: Source) -> tuple[Figure, list[str]]:
    """The picture, and "panel: query" of each query that has no data."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1
    figure = Figure(figsize=(COLUMNS * CELL_INCHES[0], rows * CELL_INCHES[1]))
    start, end = (datetime.fromtimestamp(second, UTC) for second in (source.start, source.end))
    title = f"{dashboard['title']} · {start:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"
    figure.text(0.5, 1 - 0.6 / rows, title, ha="center", va="center", fontsize=13)
    empty: list[str] = []
    for number, panel in enumerate(panels, 1):
        _progress(number, len(panels))
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - (place["y"] + 1) / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, top - 0.6 / rows, panel["title"], fontsize=11, fontweight="bold", va="center")
            continue
        # Room inside the panel's place for its title, its axis and its legend.
        inner = (left + 0.035, top - (place["h"] - 1.9) / rows, place["w"] / COLUMNS - 0.045, (place["h"] - 2.9) / rows)
        axes = figure.add_axes(inner)
        axes.set_title(panel["title"], fontsize=8)
        found: list[Series] = []
        for target in panel["targets"]:
            series = [one for one in source.series(target) if one.has_data()]
            if not series:
                empty.append(f"{panel['title']}: {source.filled(target['expr'])}")
            found += series
        DRAW[panel["type"]](axes, panel, found, source)
    return figure, empty


def _progress(number: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rpanel {number} of {total}", end="\n" if number == total else "", file=sys.stderr, flush=True)


# -- command line ----------------------------------------------------------------------------------------------------


def read_dashboard(path: Path) -> dict[str, Any]:
    try:
        dashboard = json.loads(path.read_text())
        kinds = {panel["type"] for panel in dashboard["panels"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no dashboard ({error}): give a file of k8s/monitoring/dashboards") from None
    if unknown := kinds - DRAW.keys() - {"row"}:
        raise InputError(f"{path} has panels of type {', '.join(sorted(unknown))}: use {', '.join(DRAW)}")
    return dict(dashboard)


def variables(dashboard: dict[str, Any], given: Sequence[str]) -> dict[str, str]:
    """Every variable of the dashboard at "All", but those given as NAME=VALUE."""
    values = {one["name"]: one["allValue"] for one in dashboard["templating"]["list"] if one.get("includeAll")}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or name not in values:
            raise InputError(f"--variable {pair}: give NAME=VALUE with one of {', '.join(values)}")
        values[name] = value
    return values


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw a Grafana dashboard's panels from a running Prometheus.")
    parser.add_argument("dashboard", type=Path, help="the dashboard's JSON file")
    parser.add_argument("--prometheus", required=True, metavar="URL", help="such as http://127.0.0.1:9090")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="the picture")
    parser.add_argument("--minutes", type=float, default=60.0, help="time range up to --end (default: %(default)s)")
    parser.add_argument("--end", type=float, default=time.time(), help="Unix seconds (default: now)")
    parser.add_argument(
        "--scrape-seconds", type=float, default=15.0, help="Prometheus' interval (default: %(default)s)"
    )
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="instead of All; a regex")
    options = parser.parse_args(arguments)
    if not options.prometheus.startswith(("http://", "https://")):
        parser.error(f"--prometheus {options.prometheus}: give an address that begins with http:// or https://")
    for name in ("minutes", "scrape_seconds"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: give a number above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        dashboard = read_dashboard(options.dashboard)
        source = Source(
            options.prometheus.rstrip("/"),
            options.end - 60 * options.minutes,
            options.end,
            options.scrape_seconds,
            variables(dashboard, options.variable),
        )
        figure, empty = draw(dashboard, source)
        partial = options.output.with_name(f"{options.output.name}.part")
        figure.savefig(partial, format="png", dpi=90)
        os.replace(partial, options.output)
    except (InputError, OSError) as error:
        print(f"render_dashboard: {error}", file=sys.stderr)
        return 2
    for line in empty:
        print(f"no data: {line}", file=sys.stderr)
    return 1 if empty else 0


if __name__ == "__main__":
    raise SystemExit(main())
