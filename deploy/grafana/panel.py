"""What a dashboard consists of, in few words, and its form in Grafana."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="multiflora-prometheus")
Kind: TypeAlias = Literal["lines", "areas", "number", "bars", "table"]


@dataclass(frozen=True, slots=True)
class Query:
    """``legend`` names a series by its labels, such as ``{{adapter}}``."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """``unit`` is one of Grafana's; a number turns orange at ``warn`` and red at ``alarm``.

    ``width`` counts 24ths of the page.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    unit: str = "short"
    width: int = 8
    height: int = 8
    warn: float | None = None
    alarm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """``rows`` are titles with their panels. ``picks_adapters`` adds a choice of adapters."""

    uid: str
    title: str
    about: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    picks_adapters: bool = False


def panel(title: str, about: str, *queries: Query | str, **options: Any) -> Panel:
    """A panel; a plain text is a query with one nameless series."""
    found = tuple(Query(query) if isinstance(query, str) else query for query in queries)
    return Panel(title=title, about=about, queries=found, **options)


def rate(metric: str, by: str = "", *, where: str = "") -> str:
    """The sum of a counter's rates, by the labels ``by``."""
    chosen = ",".join(filter(None, ('instance=~"$instance"', where)))
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", *, where: str = "") -> str:
    """A quantile of a histogram, by the labels ``by``."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, where=where)})"


def gauge(metric: str, by: str = "", *, where: str = "") -> str:
    chosen = ",".join(filter(None, ('instance=~"$instance"', where)))
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({metric}{{{chosen}}})"


def render(board: Board) -> dashboard.Dashboard:
    """The dashboard in Grafana's form."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["multiflora"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .link(dashboard.DashboardLink("multiflora").tags(["multiflora"]).as_dropdown(True))
    )
    for variable in _variables(board):
        built = built.with_variable(variable)
    for title, panels in board.rows:
        built = built.with_row(dashboard.Row(title))
        for one in panels:
            built = built.with_panel(_panel(one))
    return built


def _variables(board: Board) -> Iterator[dashboard.QueryVariable]:
    yield _variable("instance", "Server", "label_values(multiflora_engine_up, instance)")
    if board.picks_adapters:
        values = 'label_values(multiflora_adapter_info{instance=~"$instance"}, adapter)'
        yield _variable("adapter", "Adapter", values)


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(one: Panel) -> Any:
    built = _kinds(one)
    built = (
        built.title(one.title)
        .description(one.about)
        .datasource(SOURCE)
        .unit(one.unit)
        .span(one.width)
        .height(one.height)
        .min(0)
    )
    for number, query in enumerate(one.queries):
        built = built.with_target(_target(query, "ABCDEFGH"[number], one.kind))
    if one.warn is not None or one.alarm is not None:
        built = built.thresholds(_thresholds(one))
    return built


def _kinds(one: Panel) -> Any:
    match one.kind:
        case "number":
            number = stat.Panel().color_mode(common_models.BigValueColorMode.BACKGROUND)
            return number.reduce_options(_last())
        case "bars":
            bars = bargauge.Panel().orientation(common_models.VizOrientation.HORIZONTAL)
            return bars.reduce_options(_last())
        case "table":
            return table.Panel()
        case "lines" | "areas":
            is_area = one.kind == "areas"
            lines = timeseries.Panel().line_width(1).fill_opacity(30 if is_area else 8)
            lines = lines.show_points(common_models.VisibilityMode.NEVER)
            if is_area:
                mode = common_models.StackingMode.NORMAL
                lines = lines.stacking(common.StackingConfig().mode(mode))
            return lines.legend(
                common.VizLegendOptions()
                .display_mode(common_models.LegendDisplayMode.LIST)
                .placement(common_models.LegendPlacement.BOTTOM)
                .show_legend(True)
            )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _target(query: Query, ref_id: str, kind: Kind) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).datasource(SOURCE)
    if query.legend:
        target = target.legend_format(query.legend)
    if kind == "table":
        return target.instant().format(prometheus_models.PromQueryFormat.TABLE)
    return target.instant() if kind == "bars" else target.range()


def _thresholds(one: Panel) -> dashboard.ThresholdsConfig:
    """From green through orange to red, or the other way round where less is worse."""
    steps: Sequence[tuple[float | None, str]] = [(one.warn, "orange"), (one.alarm, "red")]
    if one.warn is not None and one.alarm is not None and one.alarm < one.warn:
        steps = [(None, "red"), (one.alarm, "orange"), (one.warn, "green")]
    else:
        steps = [(None, "green"), *[step for step in steps if step[0] is not None]]
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )
