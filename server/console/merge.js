// Two or more adapters into one, and how they got along.

import * as api from "./api.js";
import { complain, tell } from "./dialog.js";
import { h, icon } from "./dom.js";
import { figure, percent } from "./format.js";
import { interference } from "./heatmap.js";
import { METHODS } from "./method.js";
import {
  badge,
  button,
  empty,
  field,
  input,
  page,
  panel,
  problem,
  progress,
  select,
  stat,
  table,
} from "./part.js";

const OVER = ["succeeded", "failed", "cancelled"];
const SETTINGS = {
  density: ["Density", "0.5", "the share of entries that stay"],
  gamma: ["Gamma", "0.01", "the share of the largest that go"],
  epsilon: ["Epsilon", "0.1", "the width of the probabilities"],
  seed: ["Seed", "0", "which entries are drawn"],
};
const kept = {
  name: "",
  chosen: new Map(),
  method: "slerp",
  t: 0.5,
  rank: "",
  replace: false,
  density: "",
  gamma: "",
  epsilon: "",
  seed: "",
};

export function mergeView(app, id) {
  let adapters = null;
  let job = null;
  let error = null;
  const method = () => METHODS.find((one) => one.name === kept.method);
  const usesT = () => method().options.includes("t") && kept.chosen.size === 2;

  function body() {
    const weighs =
      !usesT() && !method().noWeights && [...kept.chosen.values()].every((one) => one !== "");
    const sources = [...kept.chosen].map(([adapter, weight]) =>
      weighs ? { adapter, weight: Number(weight) } : { adapter },
    );
    const given = {
      name: kept.name.trim(),
      sources,
      method: kept.method,
      background: true,
      replace: kept.replace,
    };
    if (usesT()) given.t = kept.t;
    if (kept.rank.trim())
      given.rank = /^\d+$/.test(kept.rank.trim()) ? Number(kept.rank) : kept.rank.trim();
    for (const name of method().options)
      if (kept[name] !== "" && name !== "t") given[name] = Number(kept[name]);
    return given;
  }

  async function start(event) {
    event.preventDefault();
    error = null;
    try {
      const begun = await api.post("v1/adapters/merge", body());
      kept.name = "";
      app.go("merge", begun.id);
    } catch (refused) {
      error = refused;
      app.redraw();
    }
  }

  return {
    get seconds() {
      return job && !OVER.includes(job.status) ? 0.5 : 3;
    },
    load: async () => {
      const [found, shown] = await Promise.all([
        api.all("v1/adapters"),
        id && (!job || !OVER.includes(job.status)) ? api.get(`v1/adapters/merge/${id}`) : job,
      ]);
      adapters = found;
      if (job && shown && job.status !== shown.status && shown.status === "succeeded")
        tell(`${shown.name} is live.`);
      job = shown ?? null;
    },
    draw: () =>
      page(
        {
          title: "Merge",
          lead: "A merge is algebra on what adapters do, module by module, never on their factors. The parents stay as they are.",
        },
        h(
          "div",
          { class: "columns merge" },
          h(
            "form",
            { onsubmit: start },
            panel(
              { title: "Recipe" },
              adapters === null
                ? h("div", { class: "waiting" }, "Loading")
                : form(app, { adapters, method: method(), usesT: usesT() }),
              problem(error),
            ),
          ),
          h(
            "div",
            null,
            id
              ? outcome(job)
              : panel(
                  { title: "Report" },
                  empty(
                    "No merge yet",
                    "Choose two adapters or more. The report shows where they add up and where they cancel, and what was lost.",
                  ),
                ),
          ),
        ),
      ),
  };
}

function form(app, { adapters, method, usesT }) {
  const set = (name) => (event) => {
    kept[name] = event.target.value;
    app.redraw();
  };
  const methods = METHODS.map((one) => [one.name, one.name]);
  const exists = adapters.some((one) => one.name === kept.name.trim());
  return [
    h(
      "fieldset",
      { class: "sources many" },
      h("legend", { class: "field-label" }, "Parents"),
      adapters.length < 2 && h("p", { class: "hint" }, "Upload or train another adapter first."),
      adapters.map((one) => source(app, one, { weighs: !usesT && !method.noWeights })),
    ),
    field("Method", select(methods, { value: kept.method, onchange: set("method") }), method.about),
    usesT &&
      field(
        `Between the two: t = ${kept.t.toFixed(2)}`,
        h("input", {
          type: "range",
          min: 0,
          max: 1,
          step: 0.05,
          value: kept.t,
          oninput: (event) => {
            kept.t = Number(event.target.value);
            app.redraw();
          },
        }),
        `0 is ${[...kept.chosen.keys()][0]}, 1 is ${[...kept.chosen.keys()][1]}`,
      ),
    h(
      "div",
      { class: "fields two" },
      method.options
        .filter((name) => SETTINGS[name])
        .map((name) => {
          const [label, placeholder, hint] = SETTINGS[name];
          return field(
            label,
            input({ value: kept[name], placeholder, inputmode: "decimal", oninput: set(name) }),
            hint,
          );
        }),
      !method.noRank &&
        field(
          "Rank",
          input({ value: kept.rank, placeholder: "the method’s own", oninput: set("rank") }),
          "a number, exact, or energy:0.99",
        ),
      field(
        "Name of the result",
        input({
          value: kept.name,
          name: "name",
          required: true,
          placeholder: "poet-formal",
          oninput: set("name"),
        }),
        exists ? "this name exists" : " ",
      ),
    ),
    exists &&
      h(
        "label",
        { class: "check" },
        h("input", {
          type: "checkbox",
          checked: kept.replace,
          onchange: (event) => {
            kept.replace = event.target.checked;
            app.redraw();
          },
        }),
        h("span", null, "Make it a new version of that name"),
      ),
    h(
      "div",
      { class: "dialog-end" },
      h(
        "button",
        {
          type: "submit",
          class: "button primary",
          disabled: kept.chosen.size < 2 || !kept.name.trim(),
        },
        icon("merge"),
        kept.chosen.size < 2 ? "Choose two or more" : `Merge ${kept.chosen.size}`,
      ),
    ),
  ];
}

function source(app, one, { weighs }) {
  const isChosen = kept.chosen.has(one.name);
  const choose = (event) => {
    if (event.target.checked) kept.chosen.set(one.name, "");
    else kept.chosen.delete(one.name);
    app.redraw();
  };
  return h(
    "div",
    { class: "source", key: one.name },
    h(
      "label",
      { class: "check" },
      h("input", { type: "checkbox", checked: isChosen, onchange: choose }),
      h("span", null, one.name),
    ),
    h("span", { class: "hint" }, `rank ${one.rank}`),
    h(
      "span",
      { class: "source-weight" },
      isChosen &&
        weighs &&
        input({
          class: "input narrow",
          inputmode: "decimal",
          placeholder: "weight",
          "aria-label": `Weight of ${one.name}`,
          value: kept.chosen.get(one.name),
          oninput: (event) => {
            kept.chosen.set(one.name, event.target.value.trim());
            app.redraw();
          },
        }),
    ),
  );
}

function outcome(job) {
  if (!job) return panel({ title: "Report" }, h("div", { class: "waiting" }, "Loading"));
  if (job.status === "succeeded") return report(job.adapter);
  const cancel = () => api.post(`v1/adapters/merge/${job.id}/cancel`).catch(complain);
  const isOver = OVER.includes(job.status);
  return panel(
    {
      title: job.name,
      hint: job.status,
      actions: !isOver && button("Cancel", { onclick: cancel }),
    },
    !isOver && progress(job.progress, "Modules that are merged"),
    job.error && problem({ status: 400, ...job.error }),
    job.status === "cancelled" && h("p", { class: "quiet" }, "Nothing was published."),
  );
}

function report(adapter) {
  const { summary, ...whole } = adapter.report;
  const link = h(
    "a",
    { class: "button primary", href: `#/playground/${encodeURIComponent(adapter.name)}` },
    icon("playground"),
    "Try it",
  );
  return [
    panel(
      {
        title: adapter.name,
        hint: `${whole.parents.map((one) => one.name).join(" + ")} by ${whole.method}`,
        actions: [
          h(
            "a",
            { class: "button", href: `#/adapters/${encodeURIComponent(adapter.name)}` },
            "Show the adapter",
          ),
          link,
        ],
      },
      h(
        "div",
        { class: "strip inner" },
        stat(
          "Modules",
          figure(summary.num_modules),
          summary.num_missing ? `${summary.num_missing} not in all` : "all parents have them",
        ),
        stat(
          "Rank",
          summary.rank_min === summary.rank_max
            ? figure(summary.rank_max)
            : `${summary.rank_min}–${summary.rank_max}`,
          whole.dtype,
        ),
        stat(
          "Energy kept",
          percent(summary.energy_kept_mean, 2),
          `at worst ${percent(summary.energy_kept_min, 2)}`,
        ),
        stat("Mean cosine", figure(summary.cosine_mean), "0: they do not meet"),
        stat("Mean overlap", figure(summary.overlap_mean), "of the output spaces"),
      ),
    ),
    panel(
      { title: "Interference", hint: "where the parents meet: layers downwards, modules across" },
      interference(whole) ?? h("p", { class: "quiet" }, "One parent alone interferes with nobody."),
    ),
    panel({ title: "Modules", flush: true, extra: "tall" }, modules(whole)),
  ];
}

const COLUMNS = [
  { label: "Module" },
  { label: "Cosine", kind: "number" },
  { label: "Coefficients", kind: "number" },
  { label: "Branch" },
  { label: "Rank", kind: "number" },
  { label: "Norm", kind: "number" },
  { label: "Energy", kind: "number" },
];

function modules({ modules: all }) {
  return table(
    "Modules",
    COLUMNS,
    all.map((one) =>
      h(
        "tr",
        { key: one.path },
        h("td", null, h("code", null, one.path.replace(/^model\.layers\./, ""))),
        h(
          "td",
          { class: "number" },
          one.ranks.every(Boolean) && one.pairs.length ? figure(one.pairs[0].cosine) : "–",
        ),
        h(
          "td",
          { class: "number" },
          one.coefficients ? one.coefficients.map(figure).join(", ") : "–",
        ),
        h("td", null, badge(one.branch)),
        h("td", { class: "number" }, one.rank),
        h("td", { class: "number" }, figure(one.norm)),
        h("td", { class: "number" }, percent(one.energy_kept, 1)),
      ),
    ),
  );
}
