// One training job: its curve as it falls, its log, and every number of its gate.

import * as api from "./api.js";
import { chart } from "./chart.js";
import { complain, confirm } from "./dialog.js";
import { h, icon } from "./dom.js";
import { clock, duration, figure, moment } from "./format.js";
import { badge, button, digest, page, panel, problem, progress, stat, table } from "./part.js";
import { jobActions, share, statusBadge } from "./training.js";

const OVER = ["succeeded", "failed", "cancelled"];
const PAGE = 500;
const CURVES = [
  [
    "loss",
    "Loss",
    [
      ["Training", "first", "loss"],
      ["Validation", "second", "eval_loss"],
    ],
  ],
  [
    "accuracy",
    "Token accuracy",
    [
      ["Training", "first", "mean_token_accuracy"],
      ["Validation", "second", "eval_mean_token_accuracy"],
    ],
  ],
  ["rate", "Learning rate", [["Learning rate", "first", "learning_rate"]]],
  ["gradient", "Gradient norm", [["Gradient norm", "first", "grad_norm"]]],
];

export function jobView(app, id) {
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const view = {
    job: null,
    events: new Map(),
    checkpoints: [],
    curve: "loss",
    pointer: { at: null },
  };

  /** New lines of the log, the latest first, until one is known. */
  async function loadEvents() {
    let after = "";
    for (;;) {
      const { data, has_more: hasMore } = await api.get(`${path}/events?limit=${PAGE}${after}`);
      const isNew = data.filter((one) => !view.events.has(one.id));
      for (const one of isNew) view.events.set(one.id, one);
      if (!hasMore || isNew.length < data.length) return;
      after = `&after=${encodeURIComponent(data.at(-1).id)}`;
    }
  }

  async function forget() {
    const text = "Its log and its checkpoints go; an adapter that it made stays.";
    if (!(await confirm({ title: "Forget this job?", text, action: "Forget it" }))) return;
    await api.remove(path).then(() => app.go("training"), complain);
  }

  return {
    get seconds() {
      return view.job && OVER.includes(view.job.status) ? 5 : 0.7;
    },
    load: async () => {
      view.job = await api.get(path);
      [, view.checkpoints] = await Promise.all([loadEvents(), api.all(`${path}/checkpoints`, 100)]);
    },
    draw: () => {
      const { job } = view;
      return page(
        {
          title: job?.name ?? "Job",
          back: { href: "#/training", label: "Training" },
          lead: job && `${job.method.type} from ${job.model}, begun ${moment(job.created_at)}`,
          actions: job && [
            jobActions(app, job),
            OVER.includes(job.status) && button("Forget", { onclick: forget }),
            job.fine_tuned_model &&
              h(
                "a",
                {
                  class: "button primary",
                  href: `#/playground/${encodeURIComponent(job.fine_tuned_model)}`,
                },
                icon("playground"),
                "Try it",
              ),
          ],
        },
        job === null
          ? panel({ title: "Loss" }, h("div", { class: "waiting" }, "Loading"))
          : [
              job.error && problem({ status: null, ...job.error }),
              facts(job, latest(view.events)),
              curves(view, app.redraw),
              job.gate && gate(job),
              h(
                "div",
                { class: "columns" },
                log(view.events),
                h("div", null, checkpoints(view.checkpoints), settings(job)),
              ),
            ],
      );
    },
  };
}

function latest(events) {
  const found = [...events.values()].filter(
    (one) => one.type === "metrics" && one.data.train_loss !== undefined,
  );
  return found.reduce(
    (best, one) => (best === null || one.data.step > best.data.step ? one : best),
    null,
  )?.data;
}

function facts(job, last) {
  const left = job.estimated_finish ? Math.max(0, job.estimated_finish - Date.now() / 1000) : null;
  const took =
    job.finished_at && job.started_at ? `took ${duration(job.finished_at - job.started_at)}` : "";
  const more = OVER.includes(job.status)
    ? took
    : left === null
      ? "no estimate yet"
      : `about ${duration(left)} left`;
  return h(
    "div",
    { class: "strip" },
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Status"),
      h("div", { class: "stat-value small" }, statusBadge(job)),
      h("div", { class: "stat-more" }, more || " "),
    ),
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Step"),
      h(
        "div",
        { class: "stat-value" },
        job.total_steps
          ? `${figure(Math.max(job.step, last?.step ?? 0))} / ${figure(job.total_steps)}`
          : "–",
      ),
      h("div", { class: "meter" }, progress(share(job), "Progress")),
    ),
    stat("Training loss", figure(last?.loss), last ? `at step ${last.step}` : " "),
    stat("Tokens", figure(last?.num_tokens), "trained on"),
    stat(
      "Rows per step",
      figure(job.hyperparameters.batch_size),
      `${job.hyperparameters.n_epochs} epochs`,
    ),
  );
}

function curves(view, redraw) {
  const [, label, wanted] = CURVES.find(([name]) => name === view.curve);
  const rows = [...view.events.values()]
    .filter((one) => one.type === "metrics")
    .map((one) => one.data)
    .sort((a, b) => a.step - b.step);
  const series = wanted.map(([name, kind, key]) => ({
    name,
    kind,
    points: rows.filter((one) => Number.isFinite(one[key])).map((one) => [one.step, one[key]]),
  }));
  const tabs = CURVES.map(([name, text]) =>
    button(text, {
      kind: name === view.curve ? "small on" : "small quiet",
      "aria-pressed": String(name === view.curve),
      onclick: () => {
        view.curve = name;
        redraw();
      },
    }),
  );
  return panel(
    { title: label, actions: h("div", { class: "tabs" }, tabs) },
    chart({
      series,
      label,
      xLabel: "step",
      xMax: view.job.total_steps,
      state: view.pointer,
      redraw,
    }),
  );
}

const CHECKS = [
  { label: "Check" },
  { label: "", kind: "sign" },
  { label: "Measured", kind: "number" },
  { label: "Limit", kind: "number" },
  { label: "Rule" },
];

/** Every number that the gate went by, and what it could not ask. */
function gate({ gate: verdict, version }) {
  const rows = verdict.checks.map((one) =>
    h(
      "tr",
      { key: one.name + one.rule },
      h("td", { class: "name" }, one.name.replaceAll("_", " ")),
      h(
        "td",
        { class: "sign" },
        h(
          "span",
          { class: one.passed ? "pass" : "fail" },
          icon(one.passed ? "check" : "cross"),
          h("span", { class: "only-read" }, one.passed ? "passed" : "failed"),
        ),
      ),
      h("td", { class: "number" }, figure(one.value)),
      h("td", { class: "number" }, figure(one.limit)),
      h("td", { class: "rule" }, one.rule),
    ),
  );
  const missing = verdict.not_run.map((one) =>
    h(
      "tr",
      { key: `not ${one.name}`, class: "quiet" },
      h("td", { class: "name" }, one.name.replaceAll("_", " ")),
      h("td", { class: "sign" }, "–"),
      h("td", { class: "number" }, "–"),
      h("td", { class: "number" }, "–"),
      h("td", { class: "rule" }, `not asked: ${one.reason}`),
    ),
  );
  return panel(
    {
      title: "Gate",
      flush: true,
      hint: [
        "version ",
        digest(version),
        verdict.baseline ? [" beside ", digest(verdict.baseline)] : " beside the base",
      ],
      actions: badge(verdict.passed ? "passed" : "refused", verdict.passed ? "good" : "bad"),
    },
    table("Checks of the gate", CHECKS, [...rows, ...missing]),
  );
}

function log(events) {
  const lines = [...events.values()]
    .filter((one) => one.type === "message")
    .sort((a, b) => b.created_at - a.created_at);
  return panel(
    { title: "Log" },
    lines.length
      ? h(
          "ol",
          { class: "log" },
          lines.map((one) =>
            h(
              "li",
              { key: one.id, class: one.level },
              h("time", { title: moment(one.created_at) }, clock(one.created_at)),
              h("span", null, one.message),
            ),
          ),
        )
      : h("p", { class: "quiet" }, "Nothing was said yet."),
  );
}

function checkpoints(found) {
  if (!found.length) return null;
  return panel(
    { title: "Checkpoints", hint: "served by name" },
    h(
      "ul",
      { class: "plain" },
      found.map((one) =>
        h(
          "li",
          { key: one.id },
          h(
            "a",
            { href: `#/playground/${encodeURIComponent(one.fine_tuned_model_checkpoint)}` },
            one.fine_tuned_model_checkpoint,
          ),
          h(
            "span",
            { class: "hint" },
            ` step ${one.step_number}, loss ${figure(one.metrics.valid_loss ?? one.metrics.train_loss)}`,
          ),
        ),
      ),
    ),
  );
}

function settings(job) {
  const sections = Object.entries(job.training).filter(
    ([, value]) => value && typeof value === "object" && !Array.isArray(value),
  );
  return panel(
    { title: "Settings", hint: `seed ${job.seed}` },
    h(
      "dl",
      { class: "facts" },
      sections.flatMap(([section, values]) =>
        Object.entries(values)
          .filter(([, value]) => value !== null && typeof value !== "object")
          .map(([name, value]) => [
            h("dt", { key: `${section}.${name}` }, `${section}.${name}`),
            h(
              "dd",
              { key: `=${section}.${name}` },
              typeof value === "number" ? figure(value) : String(value),
            ),
          ]),
      ),
    ),
  );
}
