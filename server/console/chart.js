// Lines over time and over steps, drawn as SVG.

import { h } from "./dom.js";
import { figure } from "./format.js";

const WIDTH = 1116;
const HEIGHT = 300;
const EDGE = { left: 56, right: 16, top: 10, bottom: 26 };
const MANY = 50;
const SMOOTHING = 0.9;

/** The last samples as a small line; the newest is at the right, whatever is missing at the left. */
export function sparkline(values, label, places = 90) {
  const [width, height] = [120, 22];
  const top = Math.max(0.5, ...values);
  const last = values.at(-1) ?? 0;
  const x = (index) => width - ((values.length - 1 - index) * width) / (places - 1);
  const y = (value) => height - 1.5 - (value / top) * (height - 4);
  const points = values
    .map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`)
    .join(" ");
  return h(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${label}: ${figure(last)} requests per second`,
    },
    h("line", { class: "spark-zero", x1: 0, x2: width, y1: height - 1.5, y2: height - 1.5 }),
    values.length > 1 && h("polyline", { class: "spark-line", points }),
  );
}

/** An exponential mean without the pull of a start at zero. */
export function smooth(points) {
  let total = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    total = SMOOTHING * total + (1 - SMOOTHING) * y;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return [x, total / weight];
  });
}

/**
 * Curves over a common x. `series` are `{name, kind, points: [[x, y]]}`; noisy ones of many points
 * are drawn faintly under their mean. `state.at` is the x that the pointer is on.
 */
export function chart({ series, label, xLabel, xMax, state, redraw }) {
  const drawn = series.filter((one) => one.points.length);
  if (!drawn.length)
    return h("div", { class: "chart-empty" }, "The curve begins with the first step.");
  const scale = scaleOf(drawn, xMax);
  const move = (event) => {
    state.at = nearest(event, scale, drawn);
    redraw();
  };
  const leave = () => {
    state.at = null;
    redraw();
  };
  return h(
    "figure",
    { class: "chart" },
    h(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-label": summary(label, drawn),
        onpointermove: move,
        onpointerleave: leave,
      },
      axes(scale),
      drawn.flatMap((one) => lines(one, scale)),
      state.at !== null && state.at !== undefined && pointer(drawn, scale, state.at),
    ),
    h(
      "figcaption",
      { class: "legend" },
      drawn.map((one) => legend(one, state.at)),
      h("span", { class: "hint end" }, xLabel),
    ),
  );
}

function summary(label, drawn) {
  return `${label}: ${drawn.map((one) => `${one.name} from ${figure(one.points[0][1])} to ${figure(one.points.at(-1)[1])}`).join(", ")}`;
}

function scaleOf(series, xMax) {
  const xs = series.flatMap((one) => one.points.map(([x]) => x));
  const ys = series.flatMap((one) => one.points.map(([, y]) => y)).filter(Number.isFinite);
  const right = Math.max(xMax ?? 0, ...xs, 1);
  const low = Math.min(0, ...ys);
  const high = Math.max(...ys, low + Number.EPSILON) * 1.04;
  const x = (value) => EDGE.left + (value / right) * (WIDTH - EDGE.left - EDGE.right);
  const y = (value) =>
    HEIGHT - EDGE.bottom - ((value - low) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  return {
    x,
    y,
    xTicks: ticks(0, right, 10).filter(Number.isInteger),
    yTicks: ticks(low, high, 5),
  };
}

/** Round numbers from `low` to `high`, about `most` of them. */
function ticks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const first = Math.ceil(low / step);
  const number = Math.floor(high / step) - first + 1;
  return Array.from({ length: number }, (_, index) =>
    Number(((first + index) * step).toPrecision(12)),
  );
}

function axes(scale) {
  return [
    scale.yTicks.map((value) => [
      h("line", {
        class: "grid",
        x1: EDGE.left,
        x2: WIDTH - EDGE.right,
        y1: scale.y(value),
        y2: scale.y(value),
      }),
      h(
        "text",
        { class: "tick", x: EDGE.left - 8, y: scale.y(value) + 4, "text-anchor": "end" },
        figure(value),
      ),
    ]),
    scale.xTicks.map((value) =>
      h(
        "text",
        { class: "tick", x: scale.x(value), y: HEIGHT - EDGE.bottom + 17, "text-anchor": "middle" },
        figure(value),
      ),
    ),
  ];
}

function lines(one, scale) {
  const isNoisy = one.kind === "first" && one.points.length >= MANY;
  const shown = isNoisy
    ? [
        ["faint", one.points],
        ["", smooth(one.points)],
      ]
    : [["", one.points]];
  const found = shown.map(([extra, points]) =>
    h("polyline", { class: `line ${one.kind} ${extra}`, points: path(points, scale) }),
  );
  if (one.points.length > 24) return found;
  return [
    ...found,
    ...one.points.map(([x, y]) =>
      h("circle", { class: `point ${one.kind}`, cx: scale.x(x), cy: scale.y(y), r: 2.5 }),
    ),
  ];
}

function path(points, scale) {
  return points
    .filter(([, y]) => Number.isFinite(y))
    .map(([x, y]) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`)
    .join(" ");
}

function nearest(event, scale, series) {
  const box = event.currentTarget.getBoundingClientRect();
  const place = ((event.clientX - box.left) / box.width) * WIDTH;
  const xs = series.flatMap((one) => one.points.map(([x]) => x));
  return xs.reduce(
    (best, x) => (Math.abs(scale.x(x) - place) < Math.abs(scale.x(best) - place) ? x : best),
    xs[0],
  );
}

function pointer(series, scale, at) {
  const found = series.flatMap((one) =>
    one.points.filter(([x]) => x === at).map(([, y]) => [one.kind, y]),
  );
  return [
    h("line", {
      class: "cross",
      x1: scale.x(at),
      x2: scale.x(at),
      y1: EDGE.top,
      y2: HEIGHT - EDGE.bottom,
    }),
    found.map(([kind, y]) =>
      h("circle", { class: `point ${kind}`, cx: scale.x(at), cy: scale.y(y), r: 4 }),
    ),
  ];
}

function legend(one, at) {
  const point =
    at === null || at === undefined ? one.points.at(-1) : one.points.find(([x]) => x === at);
  return h(
    "span",
    { class: "legend-item" },
    h("i", { class: `swatch ${one.kind}`, "aria-hidden": "true" }),
    one.name,
    h(
      "span",
      { class: "legend-value" },
      point ? `${figure(point[1])} at ${figure(point[0])}` : "–",
    ),
  );
}
