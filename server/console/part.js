// The pieces that all views are put together from.

import { h, icon } from "./dom.js";
import { bytes, percent, short } from "./format.js";

/** A view's frame: where one is, what can be done, and what is there. */
export function page({ title, lead, back, actions = [] }, ...body) {
  return [
    h(
      "div",
      { class: "page-head" },
      h(
        "div",
        { class: "page-title" },
        back && h("a", { class: "back", href: back.href }, icon("back"), back.label),
        h("h1", { id: "title", tabindex: "-1" }, title),
        lead && h("p", { class: "lead" }, lead),
      ),
      h("div", { class: "actions" }, actions),
    ),
    ...body,
  ];
}

export function panel({ title, hint, actions, flush = false, extra = "" }, ...body) {
  return h(
    "section",
    { class: `panel ${extra}`.trim() },
    title &&
      h(
        "div",
        { class: "panel-head" },
        h("h2", null, title),
        hint && h("span", { class: "hint" }, hint),
        actions && h("div", { class: "actions" }, actions),
      ),
    h("div", { class: flush ? "panel-body flush" : "panel-body" }, body),
  );
}

export function button(label, props = {}) {
  const { kind = "", sign, ...rest } = props;
  return h(
    "button",
    { type: "button", class: `button ${kind}`.trim(), ...rest },
    sign && icon(sign),
    label,
  );
}

/** A button that is only a drawing; `label` is what it is called. */
export function signButton(sign, label, props = {}) {
  const { kind = "", ...rest } = props;
  return h(
    "button",
    {
      type: "button",
      class: `button sign ${kind}`.trim(),
      "aria-label": label,
      title: label,
      ...rest,
    },
    icon(sign),
  );
}

export function field(label, control, hint) {
  return h(
    "label",
    { class: "field" },
    h("span", { class: "field-label" }, label),
    control,
    hint && h("span", { class: "hint" }, hint),
  );
}

export function input(props) {
  return h("input", { class: "input", autocomplete: "off", spellcheck: "false", ...props });
}

/** A list to choose from; `options` are values, or pairs of value and label. */
export function select(options, props) {
  const pairs = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  return h(
    "select",
    { class: "input", ...props },
    pairs.map(([value, label]) => h("option", { key: value, value }, label)),
  );
}

export function checkbox(label, props) {
  return h(
    "label",
    { class: "check" },
    h("input", { type: "checkbox", ...props }),
    h("span", null, label),
  );
}

export function badge(text, kind = "", title = undefined) {
  return h("span", { class: `badge ${kind}`.trim(), title }, text);
}

const TIERS = { disk: 1, host: 2, device: 3 };
const TIER_TITLES = {
  disk: "on the disk: loaded with its next request",
  host: "in host memory: one copy away from the device",
  device: "on the device: answers at once",
};

/** Where weights are, as steps on the way from the disk to the device. */
export function residency(state) {
  const steps = [1, 2, 3].map((step) => h("i", { class: step <= TIERS[state] ? "on" : "" }));
  return h(
    "span",
    { class: `tier ${state}`, title: TIER_TITLES[state] },
    h("span", { class: "steps", "aria-hidden": "true" }, steps),
    state,
  );
}

export function digest(version) {
  return h("code", { class: "digest", title: version }, short(version));
}

/** How much of a memory is taken. */
export function meter(label, used, total) {
  const share = total > 0 ? used / total : 0;
  return h(
    "div",
    { class: "stat" },
    h("div", { class: "stat-label" }, label),
    h("div", { class: "stat-value" }, total ? percent(share) : "–"),
    h("div", { class: "meter" }, bar(share)),
    h("div", { class: "stat-more" }, total ? `${bytes(used)} of ${bytes(total)}` : "not known"),
  );
}

export function stat(label, value, more = "") {
  return h(
    "div",
    { class: "stat" },
    h("div", { class: "stat-label" }, label),
    h("div", { class: "stat-value" }, value),
    h("div", { class: "stat-more" }, more),
  );
}

/** A bar that is filled to `share`; drawn, because the page may not set styles in its markup. */
export function bar(share, extra = "") {
  const width = Math.max(0, Math.min(1, share)) * 100;
  return h(
    "svg",
    {
      class: `bar ${extra}`.trim(),
      viewBox: "0 0 100 4",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    h("rect", { class: "bar-all", width: 100, height: 4 }),
    h("rect", { class: "bar-part", width, height: 4 }),
  );
}

export function progress(share, label) {
  const now = Math.round(100 * share);
  return h(
    "div",
    {
      class: "progress",
      role: "progressbar",
      "aria-valuenow": now,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-label": label,
    },
    bar(share),
  );
}

const REMEDIES = {
  0: "Nothing needs to be done here; the page tries again by itself.",
  401: "Enter a key: the button is at the lower left.",
  403: "Use a key that has this scope, or ask an administrator for one.",
  409: "Something else was there first; the page shows how it is now.",
  412: "The name moved meanwhile; look at where it points now, and decide anew.",
  413: "The server's operator can raise the limit.",
  429: "Too much at once; try again in a moment.",
  503: "The server is busy with itself; try again in a moment.",
};

/** What went wrong, in the API's own words, and what helps. */
export function problem(error, onClose) {
  if (!error) return null;
  const wait = error.retryAfter ? ` The server says: in ${error.retryAfter} s.` : "";
  const remedy = REMEDIES[error.status];
  return h(
    "div",
    { class: "problem", role: "alert" },
    icon("warn"),
    h(
      "div",
      { class: "problem-text" },
      h("p", null, sentence(error.message)),
      remedy && h("p", { class: "hint" }, remedy + wait),
      error.code &&
        h(
          "p",
          { class: "hint" },
          h("code", null, [error.status || "", error.code].join(" ").trim()),
          error.param && [" in ", h("code", null, error.param)],
        ),
    ),
    onClose && signButton("cross", "Dismiss", { kind: "quiet", onclick: onClose }),
  );
}

export function sentence(text) {
  // A name at the beginning keeps its spelling.
  if (!/^[a-z]+[ ,;']/.test(text)) return text;
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export function empty(title, text, action) {
  return h("div", { class: "empty" }, h("h3", null, title), h("p", null, text), action);
}

/** Columns are `{label, kind}`; `rows` are keyed `tr`s. */
export function table(label, columns, rows) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { "aria-label": label },
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          columns.map((one) => h("th", { scope: "col", class: one.kind ?? "" }, one.label)),
        ),
      ),
      h("tbody", null, rows),
    ),
  );
}

/** A place to drop files on; a click or the keyboard opens the chooser. */
export function dropzone({ title, text, multiple = false, accept, onfiles }) {
  const take = async (event) => {
    event.preventDefault();
    event.currentTarget.classList.remove("over");
    onfiles(await filesOf(event.dataTransfer));
  };
  return h(
    "label",
    {
      class: "drop",
      ondragover: (event) => {
        event.preventDefault();
        event.currentTarget.classList.add("over");
      },
      ondragleave: (event) => event.currentTarget.classList.remove("over"),
      ondrop: take,
    },
    h("input", {
      type: "file",
      class: "drop-input",
      multiple,
      accept,
      "aria-label": title,
      onchange: (event) => {
        onfiles([...event.target.files]);
        event.target.value = "";
      },
    }),
    icon("upload"),
    h("span", { class: "drop-title" }, title),
    h("span", { class: "hint" }, text),
  );
}

/** The files of a drop; those of a folder, if one was dropped. */
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return [...transfer.files];
  const found = await new Promise((resolve, reject) =>
    folder.createReader().readEntries(resolve, reject),
  );
  const files = found.filter((entry) => entry.isFile);
  const read = await Promise.all(
    files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))),
  );
  read.folder = folder.name;
  return read;
}
