// All adapters: where their weights are, who uses them, and the door for new ones.

import * as api from "./api.js";
import { sparkline } from "./chart.js";
import { h, icon } from "./dom.js";
import { ago, bytes, figure, milliseconds, percent } from "./format.js";
import {
  badge,
  button,
  checkbox,
  digest,
  dropzone,
  empty,
  input,
  meter,
  page,
  panel,
  residency,
  stat,
  table,
} from "./part.js";
import { openUpload } from "./upload.js";

// Checkpoints of training jobs are served by name too; many of them hide the adapters.
const CHECKPOINT = /:ckpt-step-\d+$/;
const COLUMNS = [
  { label: "Name" },
  { label: "Version" },
  { label: "Residency" },
  { label: "Rank", kind: "number" },
  { label: "Size", kind: "number" },
  { label: "Running", kind: "number" },
  { label: "Requests", kind: "number" },
  { label: "Errors", kind: "number" },
  { label: "First token", kind: "number" },
  { label: "Traffic" },
  { label: "Changed", kind: "number" },
];

export function adaptersView(app) {
  let adapters = null;
  let filter = "";
  let hasCheckpoints = false;
  const upload = (files = []) =>
    openUpload({ files, adapters: adapters ?? [], onDone: app.refresh });

  function list() {
    if (adapters === null)
      return panel({ title: "Adapters" }, h("div", { class: "waiting" }, "Loading"));
    if (adapters.length === 0) return null;
    const checkpoints = adapters.filter((one) => CHECKPOINT.test(one.name)).length;
    const offered = adapters.filter((one) => hasCheckpoints || !CHECKPOINT.test(one.name));
    const found = offered.filter((one) => one.name.toLowerCase().includes(filter.toLowerCase()));
    const search = input({
      type: "search",
      placeholder: "Filter",
      "aria-label": "Filter by name",
      value: filter,
      oninput: (event) => {
        filter = event.target.value;
        app.redraw();
      },
    });
    const toggle = checkbox(`Checkpoints (${checkpoints})`, {
      checked: hasCheckpoints,
      onchange: (event) => {
        hasCheckpoints = event.target.checked;
        app.redraw();
      },
    });
    return panel(
      {
        title: "Adapters",
        hint: figure(offered.length),
        actions: [checkpoints > 0 && toggle, search],
        flush: true,
      },
      found.length
        ? table(
            "Adapters",
            COLUMNS,
            found.map((one) => row(app, one)),
          )
        : empty("No such name", "No adapter that is shown has this in its name."),
    );
  }

  return {
    load: async () => {
      adapters = await api.all("v1/adapters");
    },
    draw: () =>
      page(
        {
          title: "Adapters",
          lead: "Names that clients put in “model”. Each points at a version; many versions share one base.",
          actions: [button("Upload", { kind: "primary", sign: "upload", onclick: () => upload() })],
        },
        load(app),
        list(),
        adapters?.length === 0 &&
          empty(
            "No adapter yet",
            "The base answers by itself until one is here. Drop a PEFT folder below, or train one from rows.",
            h("a", { class: "button", href: "#/training/new" }, "Train one"),
          ),
        adapters !== null &&
          dropzone({
            title: "Drop an adapter here",
            text: "adapter_config.json with adapter_model.safetensors, their folder, or a .tar.gz or .zip of it",
            multiple: true,
            onfiles: upload,
          }),
      ),
  };
}

/** The server as a whole. */
function load({ traffic }) {
  if (traffic.problem)
    return h("p", { class: "hint strip-missing" }, `No live numbers: ${traffic.problem}.`);
  const value = (name) => traffic.value(`multiflora_${name}`);
  const memory = (label, name) => meter(label, value(`${name}_used`) ?? 0, value(name) ?? 0);
  const rate = traffic.rate("multiflora_generated_tokens_total");
  const waiting = value("requests_waiting");
  return h(
    "div",
    { class: "strip" },
    stat(
      "Running",
      figure(value("requests_running")),
      waiting === null ? " " : `${figure(waiting)} waiting`,
    ),
    stat("Tokens per second", rate === null ? "–" : figure(Math.round(rate)), "of all answers"),
    memory("Adapter memory", "adapter_bytes"),
    memory("Host memory", "adapter_host_bytes"),
    cache(value("kv_blocks_used") ?? 0, value("kv_blocks_cached") ?? 0, value("kv_blocks") ?? 0),
  );
}

function cache(used, cached, total) {
  const more = total
    ? `${figure(used)} of ${figure(total)} blocks, ${figure(cached)} kept`
    : "not known";
  return stat("KV cache", total ? percent(used / total) : "–", more);
}

function row(app, one) {
  const href = `#/adapters/${encodeURIComponent(one.name)}`;
  const totals = app.traffic.totals(one.name);
  return h(
    "tr",
    {
      key: one.name,
      class: "link",
      onclick: (event) => {
        if (!event.target.closest("a")) location.hash = href;
      },
    },
    h("td", null, h("a", { class: "name", href }, one.name), marks(one)),
    h("td", null, digest(one.version)),
    h("td", null, residency(one.state)),
    h("td", { class: "number" }, one.rank),
    h("td", { class: "number" }, bytes(one.bytes)),
    h("td", { class: "number" }, one.leases ? h("span", { class: "live" }, one.leases) : "0"),
    h("td", { class: "number" }, totals ? figure(totals.requests) : "0"),
    h(
      "td",
      { class: "number" },
      totals?.errors ? h("span", { class: "bad" }, figure(totals.errors)) : "0",
    ),
    h(
      "td",
      { class: "number" },
      totals?.firsts ? milliseconds(totals.firstSeconds / totals.firsts) : "–",
    ),
    h("td", null, sparkline(app.traffic.history(one.name), `Traffic of ${one.name}`)),
    h("td", { class: "number quiet" }, ago(one.updated)),
  );
}

function marks(one) {
  return [
    one.canary &&
      badge(
        `canary ${percent(one.canary.weight)}`,
        "accent",
        "a second version gets this share of the requests",
      ),
    one.pinned && h("span", { class: "mark", title: "pinned: stays on the device" }, icon("pin")),
    one.features.map((name) => badge(name.replaceAll("_", " "), "", "beside LoRA on linears")),
    !one.served && badge("not served", "bad", one.problem),
  ];
}
