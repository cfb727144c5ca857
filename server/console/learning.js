// How an adapter learns from what its users say, what they said, and what came of it.

import * as api from "./api.js";
import { complain, confirm, tell } from "./dialog.js";
import { h } from "./dom.js";
import { ago, figure, percent } from "./format.js";
import { badge, button, digest, empty, page, panel, problem, select, table } from "./part.js";
import { bodyOf, draftOf, policyForm } from "./policy.js";

const GOOD = {
  promoted: "good",
  rolled_back: "bad",
  refused: "bad",
  failed: "bad",
  training: "accent",
  canary: "accent",
  collecting: "accent",
};
export function learningView(app, name) {
  const view = {
    names: null,
    policy: null,
    draft: null,
    runs: [],
    feedback: [],
    feedbackError: null,
    error: null,
  };
  const path = () => `v1/adapters/${encodeURIComponent(name)}`;

  async function save(event) {
    event?.preventDefault();
    view.error = null;
    try {
      view.policy = await api.put(`${path()}/learning`, bodyOf(view.draft));
      view.draft = null;
      tell(`The policy of ${name} is set.`);
    } catch (error) {
      view.error = error;
    }
    app.redraw();
  }

  async function learn() {
    try {
      const job = await api.post(`${path()}/learn`);
      app.go("training", job.id);
    } catch (error) {
      complain(error);
    }
  }

  async function erase() {
    const text =
      "All kept answers and all feedback of the adapter are overwritten. A version that has learned from them stays as it is.";
    if (!(await confirm({ title: `Erase what users of ${name} said?`, text, action: "Erase" })))
      return;
    await api
      .remove(`v1/feedback?adapter=${encodeURIComponent(name)}`)
      .then((one) => tell(`${one.deleted_completions} answers are erased.`), complain);
    app.refresh();
  }

  return {
    load: async () => {
      view.names = (await api.all("v1/adapters")).map((one) => one.name);
      if (!name && view.names.length) {
        location.replace(`#/learning/${encodeURIComponent(view.names[0])}`);
        return;
      }
      if (!name) return;
      [view.policy, view.runs] = await Promise.all([
        api.get(`${path()}/learning`),
        api.all(`${path()}/learning/runs`, 50),
      ]);
      try {
        view.feedback = await api.all(`v1/feedback?adapter=${encodeURIComponent(name)}`, 20);
        view.feedbackError = null;
      } catch (error) {
        view.feedbackError = error;
      }
    },
    draw: () =>
      page(
        {
          title: "Learning",
          lead: "Feedback becomes rows, rows a job, and its version a canary that is promoted or taken back.",
          actions: view.names?.length > 0 && [
            select(view.names, {
              value: name,
              "aria-label": "Adapter",
              class: "input inline",
              onchange: (event) => app.go("learning", event.target.value),
            }),
            button("Learn now", {
              kind: "primary",
              disabled: !view.policy?.enabled,
              title: view.policy?.enabled
                ? "begin a run with all feedback that waits"
                : "switch learning on first",
              onclick: learn,
            }),
          ],
        },
        view.names?.length === 0 &&
          empty(
            "No adapter yet",
            "An adapter of your own can learn from its users; the base cannot.",
          ),
        view.policy &&
          h(
            "div",
            { class: "columns form" },
            policyForm({
              draft: (view.draft ??= draftOf(view.policy)),
              policy: view.policy,
              error: view.error,
              redraw: app.redraw,
              save,
              undo: () => {
                view.draft = null;
                app.redraw();
              },
            }),
            h("div", null, kept(view), runs(view), said(view, erase)),
          ),
      ),
  };
}

function kept({
  policy: { kept_completions: answers, kept_feedback: feedback, enabled, feedback: keeps },
}) {
  const state = enabled
    ? badge("learning", "good")
    : keeps
      ? badge("keeping", "accent")
      : badge("off");
  return h(
    "div",
    { class: "strip inner" },
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "State"),
      h("div", { class: "stat-value small" }, state),
      h("div", { class: "stat-more" }, enabled || keeps ? "answers are kept" : "nothing is kept"),
    ),
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Answers kept"),
      h("div", { class: "stat-value" }, figure(answers)),
      h("div", { class: "stat-more" }, " "),
    ),
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Feedback"),
      h("div", { class: "stat-value" }, figure(feedback)),
      h("div", { class: "stat-more" }, " "),
    ),
  );
}

function runs({ runs: found }) {
  if (!found.length)
    return panel(
      { title: "Runs" },
      empty(
        "No run yet",
        "A run begins by itself when enough feedback waits, or with “Learn now”.",
      ),
    );
  return panel(
    { title: "Runs", flush: true },
    h(
      "ol",
      { class: "runs" },
      found.map((one) =>
        h(
          "li",
          { key: one.id },
          h(
            "div",
            { class: "run-head" },
            badge(one.status.replaceAll("_", " "), GOOD[one.status] ?? ""),
            h("span", null, `${figure(one.rows)} rows`),
            one.job && h("a", { href: `#/training/${encodeURIComponent(one.job)}` }, "job"),
            one.version && digest(one.version),
            h("span", { class: "quiet end" }, ago(one.created_at)),
          ),
          (one.verdict?.reason ?? one.reason) &&
            h("p", { class: "hint" }, one.verdict?.reason ?? one.reason),
          one.verdict?.comparisons && comparisons(one.verdict.comparisons),
        ),
      ),
    ),
  );
}

const COLUMNS = [
  { label: "Bar" },
  { label: "Live", kind: "number" },
  { label: "Canary", kind: "number" },
  { label: "Difference", kind: "number" },
  { label: "Limit", kind: "number" },
  { label: "" },
];

function comparisons(found) {
  return table(
    "Canary beside the live version",
    COLUMNS,
    found.map((one) =>
      h(
        "tr",
        { key: one.name },
        h("td", null, one.name.replaceAll("_", " ")),
        h("td", { class: "number" }, figure(one.live)),
        h("td", { class: "number" }, figure(one.canary)),
        h("td", { class: "number" }, figure(one.value)),
        h("td", { class: "number" }, figure(one.limit)),
        h(
          "td",
          null,
          one.broken
            ? badge("broken", "bad")
            : one.value === null
              ? badge("not measured")
              : badge(one.kept ? "kept" : "over", one.kept ? "good" : "warn"),
        ),
      ),
    ),
  );
}

function said(view, erase) {
  if (view.feedbackError) return panel({ title: "What users said" }, problem(view.feedbackError));
  if (!view.feedback.length)
    return panel(
      { title: "What users said" },
      empty(
        "Nothing yet",
        "Thumbs and edits in the playground, and POST /v1/feedback, end up here.",
      ),
    );
  return panel(
    {
      title: "What users said",
      hint: "the latest",
      actions: button("Erase all", { kind: "danger small", onclick: erase }),
    },
    h(
      "ol",
      { class: "said" },
      view.feedback.map((one) =>
        h(
          "li",
          { key: one.id },
          h(
            "div",
            { class: "run-head" },
            badge(
              one.kind === "rating" ? `thumb ${one.rating}` : one.kind,
              one.rating === "down" ? "bad" : "good",
            ),
            digest(one.version),
            h("span", { class: "quiet end" }, ago(one.created_at)),
          ),
          h("p", null, one.answer),
          one.kind !== "rating" && h("p", { class: "instead" }, one[one.kind]),
        ),
      ),
    ),
  );
}
