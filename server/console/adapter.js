// One adapter: its versions, who gets which, and what happened to the name.

import * as api from "./api.js";
import { sparkline } from "./chart.js";
import { complain, confirm, tell } from "./dialog.js";
import { h, icon } from "./dom.js";
import { ago, bytes, figure, milliseconds, moment, percent, short } from "./format.js";
import { badge, button, digest, page, panel, problem, residency, stat, table } from "./part.js";
import { openUpload } from "./upload.js";

const VERSION_COLUMNS = [
  { label: "Version" },
  { label: "Gets" },
  { label: "Residency" },
  { label: "Rank", kind: "number" },
  { label: "Size", kind: "number" },
  { label: "Running", kind: "number" },
  { label: "From" },
  { label: "Made", kind: "number" },
  { label: "", kind: "end" },
];

export function adapterView(app, name) {
  const path = `v1/adapters/${encodeURIComponent(name)}`;
  const view = { adapter: null, versions: [], events: [], weight: null };

  /** Do `work` to the adapter, say so, and look at what came of it. */
  async function act(work, said) {
    try {
      await work();
      tell(said);
    } catch (error) {
      complain(error);
    }
    app.refresh();
  }

  const match = () => ({ "if-match": view.adapter.version });
  const acts = {
    activate: (version) =>
      act(
        () => api.post(`${path}/rollback`, { version }, match()),
        `${name} answers with ${short(version)}.`,
      ),
    rollBack: () =>
      act(
        () => api.post(`${path}/rollback`, {}, match()),
        `${name} is back at the version before.`,
      ),
    split: (version, weight) =>
      act(
        () => api.post(`${path}/canary`, { version, weight }),
        `${short(version)} gets ${percent(weight)} of the requests.`,
      ),
    promote: () =>
      act(() => api.post(`${path}/promote`, {}, match()), "The canary answers everybody."),
    endCanary: () => act(() => api.post(`${path}/canary`, { weight: 0 }), "The canary is ended."),
    pin: () => act(() => api.post(`${path}/pin`), `${name} stays on the device.`),
    unpin: () => act(() => api.post(`${path}/unpin`), `${name} may leave the device.`),
    warm: () => act(() => api.post(`${path}/warm`), `${name} is loaded.`),
    download: () => download(path, name),
    remove: async () => {
      const text = `Requests for ${name} are answered with 404 from then on; running ones finish. Its versions go with it.`;
      if (!(await confirm({ title: `Delete ${name}?`, text, action: "Delete" }))) return;
      try {
        await api.remove(path);
        tell(`${name} is deleted.`);
        app.go("adapters");
      } catch (error) {
        complain(error);
      }
    },
  };

  return {
    load: async () => {
      const [adapter, versions, events] = await Promise.all([
        api.get(path),
        api.all(`${path}/versions`),
        api.all(`${path}/history`, 50),
      ]);
      Object.assign(view, { adapter, versions, events });
    },
    draw: () =>
      page(
        {
          title: name,
          back: { href: "#/adapters", label: "Adapters" },
          lead: view.adapter && lead(view.adapter),
          actions: view.adapter && actions(app, view, acts),
        },
        view.adapter === null &&
          panel({ title: "Versions" }, h("div", { class: "waiting" }, "Loading")),
        view.adapter?.problem &&
          problem({ message: view.adapter.problem, status: null, code: "not served" }),
        view.adapter && [
          facts(app, view.adapter),
          canary(view, acts, app.redraw),
          versions(view, acts),
          history(view.events),
        ],
      ),
  };
}

function lead({ version, created }) {
  return ["points at ", digest(version), `, known since ${moment(created)}`];
}

function actions(app, { adapter, versions }, acts) {
  const upload = () => openUpload({ name: adapter.name, adapters: [adapter], onDone: app.refresh });
  return [
    h(
      "a",
      { class: "button primary", href: `#/playground/${encodeURIComponent(adapter.name)}` },
      icon("playground"),
      "Try it",
    ),
    button("New version", { sign: "upload", onclick: upload }),
    button("Roll back", {
      onclick: acts.rollBack,
      disabled: versions.length < 2,
      title: "to the version that was active before",
    }),
    adapter.pinned
      ? button("Unpin", { sign: "pin", onclick: acts.unpin })
      : button("Pin", { sign: "pin", onclick: acts.pin, title: "keep it on the device" }),
    adapter.state !== "device" && button("Warm", { onclick: acts.warm, title: "load it now" }),
    button("Download", { onclick: acts.download }),
    button("Delete", { kind: "danger", onclick: acts.remove }),
  ];
}

function facts(app, adapter) {
  const totals = app.traffic.totals(adapter.name);
  const recent = app.traffic.recent(adapter.name);
  return h(
    "div",
    { class: "strip" },
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Residency"),
      h("div", { class: "stat-value small" }, residency(adapter.state)),
      h(
        "div",
        { class: "stat-more" },
        [bytes(adapter.bytes), `rank ${adapter.rank}`, ...adapter.features].join(", "),
      ),
    ),
    stat(
      "Running",
      figure(adapter.leases),
      adapter.pinned ? "pinned to the device" : "leases on its versions",
    ),
    stat(
      "Requests",
      totals ? figure(totals.requests) : "0",
      `${figure(totals?.errors ?? 0)} failed, since the start`,
    ),
    stat(
      "First token",
      totals?.firsts ? milliseconds(totals.firstSeconds / totals.firsts) : "–",
      "mean since the start",
    ),
    h(
      "div",
      { class: "stat" },
      h("div", { class: "stat-label" }, "Traffic"),
      h(
        "div",
        { class: "stat-value small" },
        sparkline(app.traffic.history(adapter.name), `Traffic of ${adapter.name}`),
      ),
      h(
        "div",
        { class: "stat-more" },
        recent === null ? "not known" : `${recent.toFixed(2)} requests per second`,
      ),
    ),
  );
}

function canary(view, acts, redraw) {
  const running = view.adapter.canary;
  if (!running) return null;
  const weight = view.weight ?? running.weight;
  return panel(
    {
      title: "Canary",
      hint: "a user always gets the same of the two",
      actions: [
        button("Promote", {
          kind: "primary",
          onclick: acts.promote,
          title: "the canary becomes the active version",
        }),
        button("End it", {
          onclick: acts.endCanary,
          title: "everybody gets the active version again",
        }),
      ],
    },
    h(
      "div",
      { class: "split" },
      h(
        "div",
        { class: "split-side" },
        digest(view.adapter.version),
        h("span", { class: "hint" }, "active"),
        h("strong", null, percent(1 - weight)),
      ),
      h("input", {
        class: "split-range",
        // The canary is at the right, so its share grows from there.
        dir: "rtl",
        type: "range",
        min: 0,
        max: 100,
        step: 1,
        value: Math.round(100 * weight),
        "aria-label": "Share of the canary in percent",
        oninput: (event) => {
          view.weight = event.target.value / 100;
          redraw();
        },
        onchange: async (event) => {
          await acts.split(running.version, event.target.value / 100);
          view.weight = null;
        },
      }),
      h(
        "div",
        { class: "split-side end" },
        digest(running.version),
        h("span", { class: "hint" }, "canary"),
        h("strong", null, percent(weight)),
      ),
    ),
  );
}

function versions(view, acts) {
  const rows = view.versions.map((one) =>
    h(
      "tr",
      { key: one.id },
      h("td", null, digest(one.version)),
      h("td", null, share(one, view.adapter)),
      h("td", null, residency(one.state)),
      h("td", { class: "number" }, one.rank),
      h("td", { class: "number" }, bytes(one.bytes)),
      h("td", { class: "number" }, one.leases),
      h("td", null, origin(one)),
      h("td", { class: "number quiet", title: moment(one.created) }, ago(one.created)),
      h(
        "td",
        { class: "end" },
        h(
          "div",
          { class: "row-actions" },
          !one.active && [
            button("Swap to it", {
              kind: "small",
              onclick: () => acts.activate(one.version),
              title: "the next request gets this version",
            }),
            !one.canary &&
              button("Canary 10 %", {
                kind: "small",
                onclick: () => acts.split(one.version, 0.1),
                title: "give it a share of the requests",
              }),
          ],
        ),
      ),
    ),
  );
  return panel(
    { title: "Versions", hint: "what the name keeps, the one used last first", flush: true },
    table("Versions", VERSION_COLUMNS, rows),
  );
}

function share(version, { canary: running }) {
  if (version.active)
    return badge(running ? `active ${percent(1 - running.weight)}` : "active", "good");
  return version.canary
    ? badge(`canary ${percent(running.weight)}`, "accent")
    : h("span", { class: "quiet" }, "nothing");
}

function origin({ source, parents, metrics }) {
  const job = typeof metrics?.job === "string" ? metrics.job : null;
  if (job) return h("a", { href: `#/training/${encodeURIComponent(job)}` }, source || "training");
  return h(
    "span",
    { title: parents.length ? `of ${parents.map(short).join(" and ")}` : undefined },
    source || "–",
  );
}

const SAID = {
  point: "points at",
  keep: "kept",
  rollback: "rolled back",
  set_canary: "canary",
  clear_canary: "canary ended",
  promote: "promoted",
  retire: "retired",
  pin: "pinned",
  unpin: "unpinned",
  delete: "deleted",
};

function history(events) {
  const rows = events.map((one) =>
    h(
      "li",
      { key: one.id, class: "event" },
      h("time", { class: "quiet", title: moment(one.created) }, ago(one.created)),
      h("span", { class: "event-what" }, SAID[one.action] ?? one.action.replaceAll("_", " ")),
      h(
        "span",
        { class: "event-detail" },
        one.from && one.from !== one.to && [digest(one.from), " → "],
        one.to && digest(one.to),
        one.weight !== null && one.weight !== undefined && ` with ${percent(one.weight)}`,
        one.evidence?.reason && h("div", { class: "hint" }, one.evidence.reason),
      ),
    ),
  );
  return panel({ title: "History" }, h("ol", { class: "events" }, rows));
}

/** A link cannot carry the key, so the tar is fetched and handed over. */
async function download(path, name) {
  try {
    const response = await api.request("GET", `${path}/download`);
    const url = URL.createObjectURL(await response.blob());
    const link = document.createElement("a");
    Object.assign(link, { href: url, download: `${name}.tar` });
    link.click();
    URL.revokeObjectURL(url);
  } catch (error) {
    complain(error);
  }
}
