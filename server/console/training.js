// Training jobs, and the form that begins one.

import * as api from "./api.js";
import { complain } from "./dialog.js";
import { h, icon } from "./dom.js";
import { ago, bytes, figure, percent } from "./format.js";
import {
  badge,
  button,
  dropzone,
  empty,
  field,
  input,
  page,
  panel,
  problem,
  progress,
  select,
  table,
} from "./part.js";

const COLUMNS = [
  { label: "Result" },
  { label: "From" },
  { label: "Method" },
  { label: "Status" },
  { label: "Progress" },
  { label: "Gate" },
  { label: "Begun", kind: "number" },
];
const METHODS = [
  ["supervised", "supervised: rows with answers"],
  ["dpo", "dpo: pairs, chosen and rejected"],
  ["kto", "kto: ratings, good or bad"],
];
const kept = {
  model: "",
  file: null,
  validation: "",
  method: "supervised",
  suffix: "",
  epochs: "",
  batch: "",
  rank: "",
  rate: "",
  seed: "",
};

export function statusBadge(job) {
  if (job.paused) return badge("paused", "warn");
  const kind = { succeeded: "good", failed: "bad", running: "accent" }[job.status] ?? "";
  return badge(job.status.replaceAll("_", " "), kind);
}

export function share(job) {
  if (job.status === "succeeded") return 1;
  return job.total_steps ? job.step / job.total_steps : 0;
}

export function trainingView(app, isNew) {
  const view = { jobs: null, files: [], error: null, sent: null, upload: null };
  return {
    load: async () => {
      const [jobs, files] = await Promise.all([
        api.all("v1/fine_tuning/jobs", 100),
        api.all("v1/files?purpose=fine-tune", 200),
      ]);
      Object.assign(view, { jobs, files });
    },
    draw: () => (isNew ? newJob(app, view) : jobs(app, view)),
  };
}

function jobs(app, view) {
  const begin = h(
    "a",
    { class: "button primary", href: "#/training/new" },
    icon("plus"),
    "New job",
  );
  return page(
    {
      title: "Training",
      lead: "Jobs train on the very weights that serve, in the gaps between requests. A version goes live only through its gate.",
      actions: begin,
    },
    view.jobs === null && panel({ title: "Jobs" }, h("div", { class: "waiting" }, "Loading")),
    view.jobs?.length === 0 &&
      panel(
        { title: "Jobs" },
        empty(
          "No job yet",
          "A file of questions and answers is all it takes; sixteen rows are enough to see the curve fall.",
          begin,
        ),
      ),
    view.jobs?.length > 0 &&
      panel(
        { title: "Jobs", hint: figure(view.jobs.length), flush: true },
        table("Training jobs", COLUMNS, view.jobs.map(row)),
      ),
  );
}

function row(job) {
  const href = `#/training/${encodeURIComponent(job.id)}`;
  return h(
    "tr",
    {
      key: job.id,
      class: "link",
      onclick: (event) => {
        if (!event.target.closest("a")) location.hash = href;
      },
    },
    h("td", null, h("a", { class: "name", href }, job.name)),
    h("td", null, job.model),
    h("td", null, job.method.type),
    h("td", null, statusBadge(job)),
    h(
      "td",
      null,
      h(
        "div",
        { class: "row-progress" },
        progress(share(job), `Progress of ${job.name}`),
        h(
          "span",
          { class: "hint" },
          job.total_steps ? `${figure(job.step)} of ${figure(job.total_steps)}` : " ",
        ),
      ),
    ),
    h(
      "td",
      null,
      job.gate
        ? badge(job.gate.passed ? "passed" : "refused", job.gate.passed ? "good" : "bad")
        : h("span", { class: "quiet" }, "–"),
    ),
    h("td", { class: "number quiet" }, ago(job.created_at)),
  );
}

function newJob(app, view) {
  const set = (name) => (event) => {
    kept[name] = event.target.value;
    app.redraw();
  };
  const number = (name, label, placeholder, hint) =>
    field(
      label,
      input({ value: kept[name], name, placeholder, inputmode: "decimal", oninput: set(name) }),
      hint,
    );
  const models = app.models.map((one) => [
    one.id,
    one.parent === null ? `${one.id} (the base)` : `${one.id}: go on from it`,
  ]);
  if (!kept.model && models.length) kept.model = models[0][0];
  const files = view.files.filter((one) => one.status === "processed");
  return page(
    {
      title: "New job",
      back: { href: "#/training", label: "Training" },
      lead: "What is left empty is chosen by the size of the data, and shown once the file is read.",
    },
    h(
      "form",
      { class: "columns form", onsubmit: (event) => create(event, app, view) },
      panel(
        { title: "Rows" },
        dropzone({
          title: "Drop a JSONL file",
          text: "messages, or prompt and completion, a row per line",
          accept: ".jsonl,.json,.txt",
          onfiles: ([file]) => file && send(app, view, file),
        }),
        view.upload && uploadLine(view.upload),
        files.length > 0 &&
          field(
            "Or one that is here",
            select(
              [
                ["", "choose"],
                ...files.map((one) => [
                  one.id,
                  `${one.filename} · ${bytes(one.bytes)} · ${ago(one.created_at)}`,
                ]),
              ],
              {
                value: kept.file ?? "",
                name: "file",
                onchange: (event) => {
                  kept.file = event.target.value || null;
                  app.redraw();
                },
              },
            ),
          ),
        files.length > 0 &&
          field(
            "Held out",
            select([["", "none"], ...files.map((one) => [one.id, one.filename])], {
              value: kept.validation,
              name: "validation",
              onchange: set("validation"),
            }),
            "rows that the gate measures the version on",
          ),
      ),
      panel(
        { title: "Job" },
        field(
          "Start from",
          select(models, { value: kept.model, name: "model", onchange: set("model") }),
        ),
        field(
          "Method",
          select(METHODS, { value: kept.method, name: "method", onchange: set("method") }),
        ),
        field(
          "Name of the result",
          input({
            value: kept.suffix,
            name: "suffix",
            placeholder: "made up by the server",
            oninput: set("suffix"),
          }),
          "a name that exists gets a new version, and can be rolled back",
        ),
        h(
          "div",
          { class: "fields five" },
          number("epochs", "Epochs", "auto"),
          number("batch", "Rows per step", "auto"),
          number("rank", "Rank", "auto"),
          number("rate", "Learning rate", "auto"),
          number("seed", "Seed", "drawn"),
        ),
        problem(view.error),
        h(
          "div",
          { class: "dialog-end" },
          h(
            "button",
            { type: "submit", class: "button primary", disabled: !kept.file },
            kept.file ? "Begin training" : "Choose a file first",
          ),
        ),
      ),
    ),
  );
}

function uploadLine(upload) {
  const signs = { sending: "dot", checking: "dot", good: "check", bad: "cross" };
  const kinds = { sending: "running", checking: "running", good: "good", bad: "bad" };
  return h(
    "ol",
    { class: "report", "aria-live": "polite" },
    h(
      "li",
      { class: `step ${kinds[upload.status]}` },
      icon(signs[upload.status]),
      h("span", { class: "step-label" }, upload.name),
      h(
        "span",
        { class: "step-text" },
        upload.text,
        upload.status === "sending" && progress(upload.share, "Upload"),
      ),
    ),
    problem(upload.error),
  );
}

/** Send a file and wait for what its check says: line by line, before any job is made. */
async function send(app, view, file) {
  const upload = { name: file.name, status: "sending", share: 0, text: "", error: null };
  view.upload = upload;
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  try {
    let stored = await api.upload("POST", "v1/files", form, (part) => {
      upload.share = part;
      app.redraw();
    });
    Object.assign(upload, { status: "checking", text: "every row is read" });
    while (stored.status === "uploaded") {
      app.redraw();
      await new Promise((resolve) => setTimeout(resolve, 300));
      stored = await api.get(`v1/files/${stored.id}`);
    }
    const isGood = stored.status === "processed";
    Object.assign(upload, {
      status: isGood ? "good" : "bad",
      text: isGood ? `${bytes(stored.bytes)}, every row can be trained on` : stored.status_details,
    });
    if (isGood) kept.file = stored.id;
    app.refresh();
  } catch (error) {
    Object.assign(upload, { status: "bad", text: "", error });
  }
  app.redraw();
}

async function create(event, app, view) {
  event.preventDefault();
  view.error = null;
  const given = (text) => (text.trim() === "" ? undefined : Number(text));
  const hyperparameters = { n_epochs: given(kept.epochs), batch_size: given(kept.batch) };
  const training = {};
  if (kept.rank.trim()) training.lora = { rank: given(kept.rank) };
  if (kept.rate.trim()) training.optimizer = { learning_rate: given(kept.rate) };
  const body = {
    model: kept.model,
    training_file: kept.file,
    validation_file: kept.validation || undefined,
    suffix: kept.suffix.trim() || undefined,
    seed: given(kept.seed),
    method: { type: kept.method, [kept.method]: { hyperparameters } },
    training,
  };
  try {
    const job = await api.post("v1/fine_tuning/jobs", body);
    app.go("training", job.id);
  } catch (error) {
    view.error = error;
    app.redraw();
  }
}

/** What can be done to a job, as buttons. */
export function jobActions(app, job) {
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(job.id)}`;
  const act = (what) => async () => {
    await api.post(`${path}/${what}`).catch(complain);
    app.refresh();
  };
  const isOver = ["succeeded", "failed", "cancelled"].includes(job.status);
  if (isOver) return [];
  return [
    job.paused
      ? button("Resume", { kind: "primary", onclick: act("resume") })
      : button("Pause", { onclick: act("pause") }),
    button("Cancel", { kind: "danger", onclick: act("cancel") }),
  ];
}
