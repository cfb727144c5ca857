// A new adapter or version: what was dropped, what it holds, and what the server's check says, live.

import * as api from "./api.js";
import { close, open } from "./dialog.js";
import { h, icon } from "./dom.js";
import { bytes, percent, short } from "./format.js";
import { badge, button, dropzone, field, input, problem, progress, select } from "./part.js";
import { describeConfig, describeTensors, readConfig, readTensors } from "./safetensors.js";

const SIGNS = { waiting: "dot", running: "dot", good: "check", bad: "cross", skipped: "dot" };

/** Open the dialog. `name` is fixed where a version for one adapter is wanted. */
export function openUpload({ files = [], adapters, name = null, onDone }) {
  const state = {
    name: name ?? "",
    files: null,
    mode: "swap",
    share: 0.1,
    steps: [],
    error: null,
    isSending: false,
    done: null,
  };
  const redraw = open(name ? `New version of ${name}` : "Upload an adapter", {}, () =>
    content(state, { adapters, fixed: name !== null, redraw: () => redraw(), onDone }),
  );
  if (files.length) take(state, files, () => redraw());
}

function content(state, context) {
  return [
    dropzone({
      title: state.files
        ? "Drop other files to replace these"
        : "Drop the files here, or choose them",
      text: "adapter_config.json with adapter_model.safetensors, their folder, or a .tar.gz or .zip",
      multiple: true,
      onfiles: (files) => take(state, files, context.redraw),
    }),
    state.files && form(state, context),
    h(
      "ol",
      { class: "report", "aria-label": "Validation report", "aria-live": "polite" },
      state.steps.map(step),
    ),
    problem(state.error),
    h("div", { class: "dialog-end" }, ending(state, context)),
  ];
}

function step(one) {
  return h(
    "li",
    { class: `step ${one.status}` },
    icon(SIGNS[one.status]),
    h("span", { class: "step-label" }, one.label),
    h(
      "span",
      { class: "step-text" },
      one.text,
      one.share !== undefined && one.status === "running" && progress(one.share, one.label),
    ),
  );
}

function form(state, { adapters, fixed, redraw }) {
  const known = adapters.some((one) => one.name === state.name);
  const name = input({
    value: state.name,
    name: "name",
    required: true,
    disabled: fixed || state.isSending,
    placeholder: "poet",
    oninput: (event) => {
      state.name = event.target.value.trim();
      redraw();
    },
  });
  const modes = [
    ["swap", "swap: it answers from now on"],
    ["canary", "canary: it gets a share of the requests"],
    ["keep", "keep: stored, and the name stays where it is"],
  ];
  return h(
    "div",
    { class: "fields pair" },
    field(
      "Name",
      name,
      known
        ? "This name exists: the upload becomes a new version of it."
        : "A new name; clients put it in “model”.",
    ),
    known &&
      field(
        "When it has passed",
        select(modes, {
          value: state.mode,
          disabled: state.isSending,
          onchange: (event) => {
            state.mode = event.target.value;
            redraw();
          },
        }),
      ),
    known &&
      state.mode === "canary" &&
      field(
        `Share ${percent(state.share)}`,
        h("input", {
          type: "range",
          min: 1,
          max: 99,
          value: Math.round(100 * state.share),
          oninput: (event) => {
            state.share = event.target.value / 100;
            redraw();
          },
        }),
      ),
  );
}

function ending(state, { adapters, redraw, onDone }) {
  if (state.done) {
    const ask = () => {
      close();
      location.hash = `#/playground/${encodeURIComponent(state.name)}`;
    };
    return [
      button("Try it", { kind: "primary", onclick: ask }),
      button("Close", { onclick: close }),
    ];
  }
  const canSend = state.files && state.name && !state.isSending;
  return button(state.isSending ? "Working" : "Upload and check", {
    kind: "primary",
    disabled: !canSend,
    onclick: () =>
      send(
        state,
        adapters.some((one) => one.name === state.name),
        redraw,
        onDone,
      ),
  });
}

/** Sort the files and read of them what can be read here. */
async function take(state, files, redraw) {
  Object.assign(state, { error: null, done: null, isSending: false, files: null });
  const found = sorted(files);
  if (!found) {
    state.steps = [
      {
        label: "Files",
        status: "bad",
        text: `${files.map((one) => one.name).join(", ") || "nothing"}: neither both files of a PEFT folder nor one archive`,
      },
    ];
    redraw();
    return;
  }
  state.files = found;
  if (!state.name) state.name = nameFor(found, files.folder);
  const total = Object.values(found).reduce((sum, one) => sum + one.size, 0);
  state.steps = [
    {
      label: "Files",
      status: "good",
      text: `${Object.values(found)
        .map((one) => one.name)
        .join(", ")} · ${bytes(total)}`,
    },
  ];
  if (found.archive) {
    state.steps.push({
      label: "Contents",
      status: "skipped",
      text: "an archive is read by the server",
    });
  } else {
    state.steps.push(
      await look("Config", async () => describeConfig(await readConfig(found.config))),
    );
    state.steps.push(
      await look("Weights", async () => describeTensors(await readTensors(found.weights))),
    );
  }
  state.steps.push(
    { label: "Upload", status: "waiting", text: "" },
    {
      label: "Server’s check",
      status: "waiting",
      text: "every tensor against the base, in a process of its own",
    },
  );
  redraw();
}

function sorted(files) {
  const config =
    files.find((one) => one.name === "adapter_config.json") ??
    files.find((one) => one.name.endsWith(".json"));
  const weights = files.find((one) => one.name.endsWith(".safetensors"));
  if (config && weights) return { config, weights };
  const archive = files.find((one) => /\.(tar|tar\.gz|tgz|zip)$/.test(one.name));
  return archive ? { archive } : null;
}

function nameFor(found, folder) {
  const given = folder ?? found.archive?.name.replace(/\.(tar|tar\.gz|tgz|zip)$/, "") ?? "";
  return given.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
}

async function look(label, work) {
  try {
    return { label, status: "good", text: await work() };
  } catch (error) {
    return { label, status: "bad", text: error.message };
  }
}

async function send(state, isKnown, redraw, onDone) {
  const [sending, check] = state.steps.slice(-2);
  Object.assign(state, { isSending: true, error: null });
  Object.assign(sending, { status: "running", share: 0, text: "" });
  Object.assign(check, { status: "waiting" });
  redraw();
  const form = new FormData();
  if (!isKnown) form.append("name", state.name);
  if (isKnown) form.append("activate", String(state.mode === "swap"));
  for (const [field, file] of Object.entries(state.files)) form.append(field, file);
  const onProgress = (share) => {
    sending.share = share;
    if (share === 1) {
      Object.assign(sending, { status: "good", text: "all bytes are there" });
      Object.assign(check, { status: "running", text: "formats, shapes, finite values, limits" });
    }
    redraw();
  };
  try {
    const path = isKnown ? `v1/adapters/${encodeURIComponent(state.name)}` : "v1/adapters";
    const adapter = await api.upload(isKnown ? "PUT" : "POST", path, form, onProgress);
    Object.assign(check, {
      status: "good",
      text: ["passed as version ", badge(short(adapter.published), "mono", adapter.published)],
    });
    await settle(state, adapter, isKnown);
    state.done = adapter;
  } catch (error) {
    const failed = sending.status === "running" ? sending : check;
    if (failed.status === "running")
      Object.assign(failed, { status: "bad", text: error.code ?? "failed" });
    state.error = error;
  }
  state.isSending = false;
  redraw();
  onDone();
}

async function settle(state, adapter, isKnown) {
  if (isKnown && state.mode === "canary" && adapter.published !== adapter.version) {
    await api.post(`v1/adapters/${encodeURIComponent(state.name)}/canary`, {
      version: adapter.published,
      weight: state.share,
    });
  }
  const said = {
    swap: `${state.name} answers with the new version.`,
    canary: `The new version of ${state.name} gets ${percent(state.share)} of the requests.`,
    keep: `The new version of ${state.name} is kept.`,
  };
  const text = isKnown ? said[state.mode] : `${state.name} is live.`;
  state.steps.push({ label: "Published", status: "good", text });
}
