// How much the parents of a merge get in each other's way, per layer and module.

import { h } from "./dom.js";
import { figure } from "./format.js";

// As wide as a column of the report is drawn, so that numbers keep their size.
const WIDTH = 372;
const MARGIN = 26;
const ROW = 24;
const LEFT = 36;
const HEAD = 64;
const MOST_NUMBERS = 220;

/** Cosine and overlap of the parents, each as a map; null for a merge of one. */
export function interference(report) {
  const grid = gridOf(report.modules);
  if (!grid.cells.size) return null;
  const cosines = [...grid.cells.values()].map((one) => Math.abs(one.cosine));
  const limit = Math.max(0.01, ...cosines);
  return h(
    "div",
    { class: "maps" },
    map(grid, {
      title: "Cosine of the deltas",
      hint: `red adds up, blue cancels; full colour at ${figure(limit)}`,
      value: (one) => one.cosine,
      limit,
      kind: (value) => (value < 0 ? "cancel" : "add"),
    }),
    map(grid, {
      title: "Overlap of the output spaces",
      hint: "0 writes to other places, 1 to one place",
      value: (one) => one.overlap,
      limit: 1,
      kind: () => "overlap",
    }),
  );
}

/** Means over pairs that both have the module, by layer and kind. */
function gridOf(modules) {
  const cells = new Map();
  const kinds = [];
  const layers = new Set();
  for (const module of modules) {
    const pairs = module.pairs.filter((pair) => pair.parents.every((index) => module.ranks[index]));
    const { layer, kind } = placeOf(module.path);
    if (!kinds.includes(kind)) kinds.push(kind);
    layers.add(layer);
    if (!pairs.length) continue;
    const mean = (name) => pairs.reduce((sum, pair) => sum + pair[name], 0) / pairs.length;
    cells.set(`${layer}/${kind}`, {
      cosine: mean("cosine"),
      overlap: mean("overlap"),
      path: module.path,
    });
  }
  return { cells, kinds, layers: [...layers].sort((a, b) => a - b) };
}

function placeOf(path) {
  const found = /\.(\d+)\.(.+)$/.exec(path);
  return found
    ? { layer: Number(found[1]), kind: found[2] }
    : { layer: -1, kind: path.split(".").at(-1) };
}

function map(grid, { title, hint, value, limit, kind }) {
  const column = Math.max(
    26,
    Math.min(60, Math.floor((WIDTH - LEFT - MARGIN) / grid.kinds.length)),
  );
  const width = LEFT + grid.kinds.length * column + MARGIN;
  const height = HEAD + grid.layers.length * ROW + 4;
  const hasNumbers = grid.kinds.length * grid.layers.length <= MOST_NUMBERS;
  return h(
    "figure",
    { class: "map" },
    h("figcaption", null, h("h3", null, title), h("p", { class: "hint" }, hint)),
    h(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": title },
      grid.kinds.map((name, index) => {
        const x = LEFT + index * column + column / 2;
        return h(
          "text",
          { class: "tick", x, y: HEAD - 8, transform: `rotate(-40 ${x} ${HEAD - 8})` },
          name.split(".").at(-1),
        );
      }),
      grid.layers.map((layer, row) => [
        h(
          "text",
          { class: "tick", x: LEFT - 8, y: HEAD + row * ROW + 16, "text-anchor": "end" },
          layer < 0 ? "–" : layer,
        ),
        grid.kinds.map((name, index) =>
          cell(grid.cells.get(`${layer}/${name}`), {
            x: LEFT + index * column,
            y: HEAD + row * ROW,
            width: column,
            value,
            limit,
            kind,
            hasNumbers,
          }),
        ),
      ]),
    ),
  );
}

function cell(found, { x, y, width, value, limit, kind, hasNumbers }) {
  const box = { x: x + 1, y: y + 1, width: width - 2, height: ROW - 2, rx: 3 };
  if (!found) return h("rect", { class: "cell none", ...box });
  const number = value(found);
  const strength = Math.min(1, Math.abs(number) / limit);
  return h(
    "g",
    null,
    h("title", null, `${found.path}: ${figure(number)}`),
    h("rect", { class: "cell", ...box }),
    h("rect", {
      class: `cell ${kind(number)}`,
      "fill-opacity": (0.08 + 0.92 * strength).toFixed(3),
      ...box,
    }),
    hasNumbers &&
      h(
        "text",
        {
          class: strength > 0.55 ? "cell-number strong" : "cell-number",
          x: x + width / 2,
          y: y + 16,
          "text-anchor": "middle",
        },
        number.toFixed(2).replace("0.", "."),
      ),
  );
}
