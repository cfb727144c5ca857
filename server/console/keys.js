// API keys: made once, shown once, revoked for good.

import * as api from "./api.js";
import { complain, confirm, tell } from "./dialog.js";
import { h } from "./dom.js";
import { ago, moment } from "./format.js";
import {
  badge,
  button,
  checkbox,
  empty,
  field,
  input,
  page,
  panel,
  problem,
  table,
} from "./part.js";

const SCOPES = {
  inference: "ask models, give feedback",
  adapters: "upload, swap, merge, delete",
  training: "files, jobs, learning",
  metrics: "read the metrics",
  admin: "everything, of all tenants",
};
const COLUMNS = [
  { label: "Name" },
  { label: "Id" },
  { label: "Scopes" },
  { label: "Tenant" },
  { label: "Limits" },
  { label: "Made", kind: "number" },
  { label: "State" },
  { label: "", kind: "end" },
];
const DAY = 86400;

export function keysView(app) {
  const view = { keys: null, error: null, made: null, draft: blank() };

  async function make(event) {
    event.preventDefault();
    view.error = null;
    try {
      const isFirst = view.keys.length === 0 && !api.hasKey();
      view.made = await api.post("v1/keys", bodyOf(view.draft));
      // The first key closes the server, for this page too.
      if (isFirst) api.useKey(view.made.key);
      view.draft = blank();
      app.refresh();
    } catch (error) {
      view.error = error;
      app.redraw();
    }
  }

  async function revoke(key) {
    const text = `Whoever uses “${key.name}” is refused from then on. What it made stays.`;
    if (!(await confirm({ title: "Revoke this key?", text, action: "Revoke" }))) return;
    await api.remove(`v1/keys/${key.id}`).then(() => tell(`${key.name} is revoked.`), complain);
    app.refresh();
  }

  return {
    seconds: 5,
    load: async () => {
      view.keys = (await api.get("v1/keys")).data;
    },
    draw: () =>
      page(
        {
          title: "Keys",
          lead: "Only a hash of a key is kept. Scopes say what it opens; a tenant’s key sees its own things and the shared ones.",
        },
        view.keys?.length === 0 &&
          !api.hasKey() &&
          h(
            "p",
            { class: "note" },
            "This server has no keys: whoever reaches it may do everything. That is this machine alone, unless it was started with --insecure. The first key closes it for good, and needs the scope admin, to make others with. This tab goes on with it.",
          ),
        view.made && shownOnce(app, view),
        h(
          "div",
          { class: "columns form" },
          h("form", { onsubmit: make }, form(app, view)),
          view.keys === null
            ? panel({ title: "Keys" }, h("div", { class: "waiting" }, "Loading"))
            : list(view.keys, revoke),
        ),
      ),
  };
}

function blank() {
  return {
    name: "",
    scopes: new Set(),
    tenant: "",
    days: "",
    requests: "",
    tokens: "",
    concurrent: "",
  };
}

function bodyOf(draft) {
  const number = (text) => (text.trim() === "" ? undefined : Number(text));
  const days = number(draft.days);
  return {
    name: draft.name.trim(),
    scopes: [...draft.scopes],
    tenant: draft.tenant.trim(),
    limits: {
      requests_per_minute: number(draft.requests),
      tokens_per_minute: number(draft.tokens),
      max_concurrent: number(draft.concurrent),
    },
    expires_at: days === undefined ? undefined : Math.floor(Date.now() / 1000 + days * DAY),
  };
}

function form(app, view) {
  const { draft } = view;
  const text = (name, label, placeholder, hint) =>
    field(
      label,
      input({
        name,
        value: draft[name],
        placeholder,
        oninput: (event) => {
          draft[name] = event.target.value;
          app.redraw();
        },
      }),
      hint,
    );
  const toggle = (scope) => (event) => {
    if (event.target.checked) draft.scopes.add(scope);
    else draft.scopes.delete(scope);
    app.redraw();
  };
  return panel(
    { title: "New key" },
    text("name", "Name", "ci"),
    h(
      "fieldset",
      { class: "sources" },
      h("legend", { class: "field-label" }, "Scopes"),
      Object.entries(SCOPES).map(([scope, hint]) =>
        h(
          "div",
          { class: "source", key: scope },
          checkbox(scope, {
            checked: draft.scopes.has(scope),
            name: scope,
            onchange: toggle(scope),
          }),
          h("span", { class: "hint end" }, hint),
        ),
      ),
    ),
    h(
      "div",
      { class: "fields two" },
      text("tenant", "Tenant", "shared"),
      text("days", "Days until it expires", "never"),
      text("requests", "Requests per minute", "no limit"),
      text("tokens", "Tokens per minute", "no limit"),
      text("concurrent", "At once", "no limit"),
    ),
    problem(view.error),
    h(
      "div",
      { class: "dialog-end" },
      h(
        "button",
        {
          type: "submit",
          class: "button primary",
          disabled: !draft.name.trim() || !draft.scopes.size,
        },
        "Make the key",
      ),
    ),
  );
}

function shownOnce(app, view) {
  const copy = async () => {
    await navigator.clipboard.writeText(view.made.key);
    tell("The key is in the clipboard.");
  };
  return panel(
    {
      title: `The key “${view.made.name}”`,
      hint: "shown once: nobody can find it out later",
      extra: "accent",
      actions: [
        button("Copy", { sign: "copy", onclick: copy }),
        button("I have it", {
          kind: "primary",
          onclick: () => {
            view.made = null;
            app.redraw();
          },
        }),
      ],
    },
    h("code", { class: "secret" }, view.made.key),
  );
}

function list(keys, revoke) {
  if (!keys.length)
    return panel(
      { title: "Keys" },
      empty("No key yet", "A name and the scope admin make the first."),
    );
  return panel(
    { title: "Keys", flush: true },
    table(
      "Keys",
      COLUMNS,
      keys.map((key) =>
        h(
          "tr",
          { key: key.id },
          h("td", { class: "name" }, key.name),
          h("td", null, h("code", null, key.id)),
          h(
            "td",
            null,
            key.scopes.map((scope) => badge(scope, scope === "admin" ? "accent" : "")),
          ),
          h("td", null, key.tenant || h("span", { class: "quiet" }, "shared")),
          h("td", null, limits(key.limits)),
          h("td", { class: "number quiet" }, ago(key.created_at)),
          h("td", null, state(key)),
          h(
            "td",
            { class: "end" },
            key.revoked_at === null &&
              button("Revoke", { kind: "small danger", onclick: () => revoke(key) }),
          ),
        ),
      ),
    ),
  );
}

function limits({
  requests_per_minute: requests,
  tokens_per_minute: tokens,
  max_concurrent: concurrent,
}) {
  const found = [
    requests && `${requests} req/min`,
    tokens && `${tokens} tok/min`,
    concurrent && `${concurrent} at once`,
  ].filter(Boolean);
  return found.length ? found.join(", ") : h("span", { class: "quiet" }, "none");
}

function state({ revoked_at: revoked, expires_at: expires }) {
  if (revoked !== null) return badge("revoked", "bad", moment(revoked));
  if (expires !== null && expires * 1000 < Date.now())
    return badge("expired", "warn", moment(expires));
  return badge("good", "good", expires === null ? undefined : `until ${moment(expires)}`);
}
