// One prompt, two models side by side: their answers as they are drawn, and what users say of them.

import * as api from "./api.js";
import { Answer } from "./answer.js";
import { h } from "./dom.js";
import { button, empty, field, input, page, problem, select } from "./part.js";

const SIDES = ["A", "B"];
const kept = {
  models: ["", ""],
  prompt: "",
  system: "",
  temperature: "0",
  topP: "1",
  seed: "1",
  maxTokens: "128",
  remembers: false,
  turns: [],
};

export function playgroundView(app, name) {
  if (name) kept.models = [name, kept.models[1]];
  let error = null;

  /** The base beside an adapter says what the adapter does. */
  function fill() {
    const names = app.models.map((one) => one.id);
    if (!names.length) return;
    const isKnown = (one) => names.includes(one);
    if (!isKnown(kept.models[0])) kept.models[0] = names[1] ?? names[0];
    if (!isKnown(kept.models[1]))
      kept.models[1] = names.find((one) => one !== kept.models[0]) ?? names[0];
  }

  function send(event) {
    event?.preventDefault();
    const prompt = kept.prompt.trim();
    if (!prompt || isBusy()) return;
    const settings = {
      temperature: number(kept.temperature),
      top_p: number(kept.topP),
      seed: number(kept.seed),
      max_tokens: number(kept.maxTokens),
    };
    const wrong = Object.entries(settings).find(([, value]) => Number.isNaN(value));
    error = wrong ? new api.ApiError(null, { message: `${wrong[0]} is no number` }) : null;
    if (error) return app.redraw();
    const answers = kept.models.map(
      (model, side) => new Answer(model, messages(side, prompt), settings, app.redraw),
    );
    kept.turns.push({ prompt, answers });
    kept.prompt = "";
    for (const answer of answers) answer.begin();
    app.redraw();
    scroll();
  }

  function messages(side, prompt) {
    const found = kept.system.trim() ? [{ role: "system", content: kept.system.trim() }] : [];
    for (const turn of kept.remembers ? kept.turns : []) {
      if (!turn.answers[side].text) continue;
      found.push(
        { role: "user", content: turn.prompt },
        { role: "assistant", content: turn.answers[side].text },
      );
    }
    return [...found, { role: "user", content: prompt }];
  }

  const isBusy = () => kept.turns.at(-1)?.answers.some((one) => one.isRunning) ?? false;
  const stop = () => kept.turns.at(-1)?.answers.forEach((one) => one.stop());

  return {
    draw: () => {
      fill();
      return [
        page({
          title: "Playground",
          lead: "The same prompt to two models, in one batch on one base. Temperature 0 and a seed make answers repeatable.",
          actions: [
            button("Clear", {
              disabled: !kept.turns.length,
              onclick: () => {
                stop();
                kept.turns = [];
                app.redraw();
              },
            }),
          ],
        }),
        settingsBar(app),
        h(
          "div",
          { class: "duel", id: "duel", tabindex: "0", "aria-label": "Prompts and answers" },
          h(
            "div",
            { class: "duel-heads" },
            SIDES.map((side, index) => head(app, side, index)),
          ),
          kept.turns.length ? kept.turns.map(turn) : nothing(),
        ),
        problem(error),
        composer(app, { send, stop, isBusy: isBusy() }),
      ];
    },
  };
}

function number(text) {
  return text.trim() === "" ? undefined : Number(text);
}

function bound(app, name, props) {
  return input({
    value: kept[name],
    name,
    oninput: (event) => {
      kept[name] = event.target.value;
      app.redraw();
    },
    ...props,
  });
}

function settingsBar(app) {
  const numeric = { inputmode: "decimal", class: "input narrow" };
  return h(
    "div",
    { class: "settings" },
    field("Temperature", bound(app, "temperature", numeric)),
    field("Top p", bound(app, "topP", numeric)),
    field("Seed", bound(app, "seed", numeric)),
    field("Max tokens", bound(app, "maxTokens", numeric)),
    h(
      "div",
      { class: "grow" },
      field("System prompt", bound(app, "system", { placeholder: "none" })),
    ),
    h(
      "label",
      { class: "check lone" },
      h("input", {
        type: "checkbox",
        checked: kept.remembers,
        onchange: (event) => {
          kept.remembers = event.target.checked;
          app.redraw();
        },
      }),
      h("span", null, "Remember turns"),
    ),
  );
}

function head(app, side, index) {
  const options = app.models.map((one) => [
    one.id,
    one.parent === null ? `${one.id} (base)` : one.id,
  ]);
  return h(
    "div",
    { class: `duel-head ${side === "A" ? "first" : "second"}` },
    h("span", { class: "side-name", "aria-hidden": "true" }, side),
    select(options, {
      value: kept.models[index],
      "aria-label": `Model ${side}`,
      onchange: (event) => {
        kept.models[index] = event.target.value;
        app.redraw();
      },
    }),
  );
}

function nothing() {
  return empty(
    "Nothing was asked yet",
    "Choose two models above, write a prompt below, and press Enter. Thumbs and edits of an answer become training rows if its adapter keeps feedback.",
  );
}

function turn({ prompt, answers }, index) {
  return h(
    "article",
    { class: "turn", key: index },
    h("div", { class: "prompt" }, prompt),
    h(
      "div",
      { class: "answers" },
      answers.map((answer, side) =>
        h("div", { class: "answer", key: side }, answer.draw(SIDES[side])),
      ),
    ),
  );
}

function composer(app, { send, stop, isBusy }) {
  const onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  };
  return h(
    "form",
    { class: "composer", onsubmit: send },
    h("textarea", {
      class: "input",
      rows: 2,
      "aria-label": "Prompt",
      placeholder: "Ask both. Enter sends, Shift+Enter makes a new line.",
      value: kept.prompt,
      onkeydown,
      oninput: (event) => {
        kept.prompt = event.target.value;
        app.redraw();
      },
    }),
    isBusy
      ? button("Stop", { key: "stop", onclick: stop })
      : h(
          "button",
          { key: "send", class: "button primary", type: "submit", disabled: !kept.prompt.trim() },
          "Send",
        ),
  );
}

function scroll() {
  queueMicrotask(() => {
    const place = document.getElementById("duel");
    place?.scrollTo(0, place.scrollHeight);
  });
}
