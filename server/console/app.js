// The frame around the views: where one is, whether the server answers, the theme and the key.

import * as api from "./api.js";
import { adapterView } from "./adapter.js";
import { adaptersView } from "./adapters.js";
import { close, open } from "./dialog.js";
import { draw, h, icon } from "./dom.js";
import { jobView } from "./job.js";
import { keysView } from "./keys.js";
import { learningView } from "./learning.js";
import { mergeView } from "./merge.js";
import { button, field, input, problem, signButton } from "./part.js";
import { playgroundView } from "./playground.js";
import { Traffic } from "./traffic.js";
import { trainingView } from "./training.js";

const VIEWS = [
  ["adapters", "Adapters", (app, name) => (name ? adapterView(app, name) : adaptersView(app))],
  ["playground", "Playground", playgroundView],
  ["merge", "Merge", mergeView],
  [
    "training",
    "Training",
    (app, id) => (id && id !== "new" ? jobView(app, id) : trainingView(app, id === "new")),
  ],
  ["learning", "Learning", learningView],
  ["keys", "Keys", keysView],
];
const THEMES = { auto: "light", light: "dark", dark: "auto" };
const SECONDS = 2;

const app = {
  traffic: new Traffic(),
  /** Names that can be asked, the base first; filled by every look at the server. */
  models: [],
  isReady: null,
  version: "",
  route: [],
  error: null,
  redraw,
  go: (...parts) => {
    location.hash = `#/${parts.map(encodeURIComponent).join("/")}`;
  },
  /** Load the view afresh, now. */
  refresh: () => look(),
};
let view = null;
let isDrawn = true;
let turn = 0;

/** Draw soon, once for however many reasons there are. */
function redraw() {
  if (!isDrawn) return;
  isDrawn = false;
  queueMicrotask(() => {
    isDrawn = true;
    draw(document.getElementById("side"), side());
    draw(
      document.getElementById("main"),
      h(
        "div",
        { class: "view", key: app.route.join("/") },
        view.draw(),
        app.error && h("div", { class: "stale" }, problem(app.error)),
      ),
    );
  });
}

function enter() {
  app.route = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  const [, label, make] = VIEWS.find(([name]) => name === app.route[0]) ?? VIEWS[0];
  app.error = null;
  view = make(app, app.route[1]);
  document.title = `${app.route[1] ?? label} · multiflora`;
  draw(document.getElementById("main"));
  redraw();
  look();
  document.getElementById("main").scrollTo(0, 0);
}

/** Ask the server how it is and the view for its data, and again after a while. */
async function look() {
  const mine = ++turn;
  const current = view;
  try {
    await Promise.all([current.load?.(), app.traffic.look(), pulse()]);
    if (mine === turn) app.error = null;
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (mine === turn) app.error = error;
  }
  if (mine !== turn) return;
  redraw();
  setTimeout(
    () => {
      if (mine === turn) wait();
    },
    1000 * (current.seconds ?? SECONDS),
  );
}

/** A hidden page asks for nothing. */
function wait() {
  if (document.hidden) document.addEventListener("visibilitychange", () => look(), { once: true });
  else look();
}

async function pulse() {
  const isReady = await api.request("GET", "ready").then(
    () => true,
    (error) => (error.status === 0 ? null : false),
  );
  app.isReady = isReady;
  if (!app.version) app.version = (await api.get("version")).version;
  app.models = (await api.get("v1/models").catch(modelsAreHidden)).data;
}

/** A key without the scope for them can still do other things. */
function modelsAreHidden(error) {
  if (error.status === 403) return { data: [] };
  throw error;
}

function side() {
  const current = VIEWS.some(([name]) => name === app.route[0]) ? app.route[0] : VIEWS[0][0];
  return [
    h(
      "a",
      { class: "brand", href: "#/adapters" },
      h("img", { src: "console/icon.svg", alt: "", width: 26, height: 26 }),
      "multiflora",
    ),
    h(
      "nav",
      { "aria-label": "Views" },
      VIEWS.map(([name, label]) =>
        h(
          "a",
          {
            class: "nav",
            href: `#/${name}`,
            "aria-current": name === current ? "page" : undefined,
          },
          icon(name),
          label,
        ),
      ),
    ),
    h(
      "div",
      { class: "side-end" },
      pulseLine(),
      h("div", { class: "side-tools" }, themeButton(), keyButton()),
    ),
  ];
}

function pulseLine() {
  const [kind, text] =
    app.isReady === true
      ? ["good", "Ready"]
      : app.isReady === false
        ? ["warn", "Not ready"]
        : ["", "No answer"];
  return h(
    "div",
    { class: "pulse" },
    h("span", { class: `lamp ${kind}`, "aria-hidden": "true" }),
    h(
      "div",
      null,
      h("div", null, text),
      h("div", { class: "hint" }, app.models[0]?.id ?? " "),
      h("div", { class: "hint" }, app.version && `version ${app.version}`),
    ),
  );
}

function themeButton() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  return signButton(theme, `Theme: ${theme}`, {
    kind: "quiet",
    onclick: () => {
      const wanted = THEMES[theme];
      if (wanted === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = wanted;
      localStorage.setItem("multiflora.theme", wanted);
      redraw();
    },
  });
}

function keyButton() {
  const label = api.hasKey() ? "Key in use" : "No key";
  return button(label, { sign: "keys", kind: "quiet", onclick: () => askForKey(true) });
}

let asking = false;

/** A key lives in this tab only, and is gone when it is closed. */
function askForKey(canClose = false) {
  if (asking) return;
  asking = true;
  let text = "";
  let error = null;
  const end = () => {
    asking = false;
  };
  const take = async (event) => {
    event.preventDefault();
    api.useKey(text.trim());
    try {
      await api.get("v1/models").catch(modelsAreHidden);
    } catch (refused) {
      api.useKey(null);
      error = refused;
      again();
      return;
    }
    end();
    close();
    look();
  };
  const again = open("API key", { canClose, oncancel: end }, () =>
    h(
      "form",
      { onsubmit: take },
      h(
        "p",
        null,
        "This server asks for an API key. It is kept in this tab until the tab is closed, and sent to this server only.",
      ),
      field(
        "Key",
        input({
          type: "password",
          name: "key",
          placeholder: "mf-…",
          required: true,
          oninput: (event) => {
            text = event.target.value;
          },
        }),
      ),
      problem(error),
      h(
        "div",
        { class: "dialog-end" },
        api.hasKey() &&
          button("Forget the key", {
            onclick: () => {
              api.useKey(null);
              end();
              close();
              look();
            },
          }),
        h("button", { class: "button primary", type: "submit" }, "Use this key"),
      ),
    ),
  );
}

api.whenKeyIsNeeded(() => {
  if (!asking) askForKey(false);
});
document.getElementById("skip").onclick = () => document.getElementById("main").focus();
window.addEventListener("hashchange", () => {
  enter();
  // Where a reader goes on; the view is drawn by then.
  queueMicrotask(() => document.getElementById("title")?.focus());
});
// A file that misses its place must not replace the page.
for (const name of ["dragover", "drop"])
  window.addEventListener(name, (event) => event.preventDefault());
enter();
