// The form of a learning policy: when to learn, what a canary must show, what is kept.

import { h } from "./dom.js";
import { button, checkbox, field, input, panel, problem, select } from "./part.js";

const HOUR = 3600;
const DAY = 86400;
const METHODS = [
  ["supervised", "supervised: from edits"],
  ["dpo", "dpo: from edits and choices"],
  ["kto", "kto: from thumbs"],
];
// Label, hint, and how many of the API's units one of the form's is.
const START = {
  min_rows: ["Begin at", "pieces of feedback"],
  max_age_s: ["Or after", "hours; 0 is never", HOUR],
};
const CANARY = {
  min_requests: ["Decide after", "requests of each"],
  max_seconds: ["Give up after", "days", DAY],
  max_error_increase: ["More errors", "share, above the live"],
  max_dislike_increase: ["More dislikes", "share, above the live"],
  length_factor: ["Length factor", "either way"],
  latency_factor: ["Latency factor", "of both token times"],
};
const KEEPING = {
  keep_completions: ["Keep at most", "answers"],
  keep_seconds: ["Keep for", "days", DAY],
};
// What the API shows beside the policy itself.
const SHOWN = new Set(["id", "object", "adapter", "kept_completions", "kept_feedback"]);

/** A policy as the form has it, in its own units. */
export function draftOf(policy) {
  const draft = structuredClone(policy);
  convert(draft, START, (number, unit) => number / unit);
  convert(draft, KEEPING, (number, unit) => number / unit);
  convert(draft.canary, CANARY, (number, unit) => number / unit);
  return draft;
}

/** What the API is told: all of the policy, also what has no field here, or it would be reset. */
export function bodyOf(draft) {
  const given = Object.entries(draft).filter(([name, value]) => !SHOWN.has(name) && value !== null);
  const body = Object.fromEntries(given);
  Object.assign(body, pick(draft, START), pick(draft, KEEPING));
  body.canary_weight = Number(draft.canary_weight);
  body.canary = { ...draft.canary, ...pick(draft.canary, CANARY) };
  body.canary.confidence = Number(draft.canary.confidence);
  return body;
}

function convert(place, fields, change) {
  for (const [name, [, , unit = 1]] of Object.entries(fields))
    place[name] = change(place[name], unit);
}

function pick(place, fields) {
  const found = Object.entries(fields).map(([name, [, , unit = 1]]) => {
    const number = Number(place[name]) * unit;
    return [name, unit === 1 ? number : Math.round(number)];
  });
  return Object.fromEntries(found);
}

/** `draft` is changed as it is typed; `policy` is what is set. */
export function policyForm({ draft, policy, error, redraw, save, undo }) {
  const set = (place, name, read) => (event) => {
    place[name] = read(event.target);
    redraw();
  };
  const tick = (label, name, props) =>
    checkbox(label, { name, onchange: set(draft, name, (box) => box.checked), ...props });
  const number = (place, name, [label, hint]) =>
    field(
      label,
      input({
        value: place[name],
        name,
        inputmode: "decimal",
        oninput: set(place, name, (box) => box.value),
      }),
      hint,
    );
  const group = (title, place, fields, more) =>
    h(
      "div",
      { class: "group", role: "group", "aria-label": title },
      h("h3", null, title),
      h(
        "div",
        { class: "fields two" },
        Object.entries(fields).map(([name, words]) => number(place, name, words)),
        more,
      ),
    );
  const isChanged = JSON.stringify(bodyOf(draft)) !== JSON.stringify(bodyOf(draftOf(policy)));
  return h(
    "form",
    { onsubmit: save },
    panel(
      { title: "Policy" },
      h(
        "div",
        { class: "checks" },
        tick("Keep answers and feedback", "feedback", {
          checked: draft.feedback || draft.enabled,
          disabled: draft.enabled,
        }),
        tick("Learn from them", "enabled", { checked: draft.enabled }),
      ),
      field(
        "Method",
        select(METHODS, {
          value: draft.method,
          name: "method",
          onchange: set(draft, "method", (box) => box.value),
        }),
      ),
      group("When a run begins", draft, START),
      group("What its canary must show", draft.canary, CANARY, [
        number(draft, "canary_weight", ["Share", "of the requests"]),
        number(draft.canary, "confidence", ["Confidence", "of an early roll-back"]),
      ]),
      group("What is kept", draft, KEEPING),
      problem(error),
      h(
        "div",
        { class: "dialog-end" },
        button("Undo", { disabled: !isChanged, onclick: undo }),
        h(
          "button",
          { type: "submit", class: "button primary", disabled: !isChanged },
          "Save the policy",
        ),
      ),
    ),
  );
}
