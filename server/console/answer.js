// One model's answer in the playground: its text as it comes, its numbers, and feedback on it.

import * as api from "./api.js";
import { tell } from "./dialog.js";
import { h } from "./dom.js";
import { figure, milliseconds } from "./format.js";
import { badge, button, digest, problem, signButton } from "./part.js";

const SAID = {
  up: "Noted: a good answer.",
  down: "Noted: a bad answer.",
  edit: "Noted: what the answer should have been.",
};

// A pace of fewer tokens says more of the network than of the model.
const ENOUGH_TOKENS = 16;

export class Answer {
  text = "";
  isRunning = false;
  #id = null;
  #version = null;
  #reason = null;
  #numTokens = 0;
  #times = { begun: 0, first: null, end: null };
  #error = null;
  #given = null;
  #refusal = null;
  #draft = null;
  #abort = new AbortController();

  constructor(model, messages, settings, redraw) {
    Object.assign(this, { model, messages, settings, redraw });
  }

  async begin() {
    this.isRunning = true;
    this.#times.begun = performance.now();
    const body = {
      model: this.model,
      messages: this.messages,
      ...this.settings,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    const onOpen = (headers) => {
      this.#version = headers.get("x-adapter-version");
    };
    try {
      for await (const event of api.stream("v1/chat/completions", body, this.#abort.signal, onOpen))
        this.#take(event);
    } catch (error) {
      if (error.name === "AbortError") this.#reason = "stopped";
      else this.#error = error;
    }
    this.#times.end = performance.now();
    this.isRunning = false;
    this.redraw();
  }

  stop() {
    this.#abort.abort();
  }

  #take(event) {
    this.#id = event.id;
    this.#numTokens = event.usage?.completion_tokens ?? this.#numTokens;
    const [choice] = event.choices;
    if (choice?.delta?.content) {
      this.#times.first ??= performance.now();
      this.text += choice.delta.content;
    }
    this.#reason = choice?.finish_reason ?? this.#reason;
    this.redraw();
  }

  draw(side) {
    return [
      h(
        "div",
        { class: `answer-head ${side === "A" ? "first" : "second"}` },
        h("span", { class: "name" }, this.model),
        this.#version && digest(this.#version),
      ),
      this.#draft === null ? this.#body() : this.#editor(),
      problem(this.#error),
      problem(this.#refusal, () => {
        this.#refusal = null;
        this.redraw();
      }),
      h("div", { class: "answer-end" }, this.#numbers(), this.#opinions()),
    ];
  }

  #body() {
    const isEmpty = !this.text && !this.isRunning && !this.#error;
    return h(
      "div",
      { class: "answer-text", "aria-live": this.isRunning ? "off" : "polite" },
      isEmpty ? h("span", { class: "quiet" }, "(an empty answer)") : this.text,
      this.isRunning && h("span", { class: "caret", "aria-label": "still writing" }),
    );
  }

  #numbers() {
    const { begun, first, end } = this.#times;
    if (first === null)
      return h("span", { class: "hint" }, this.isRunning ? "waiting for the first token" : " ");
    const seconds = ((end ?? performance.now()) - first) / 1000;
    const pace =
      this.#numTokens >= ENOUGH_TOKENS
        ? ` · ${figure(Math.round((this.#numTokens - 1) / seconds))} tokens/s`
        : "";
    return h(
      "span",
      { class: "hint" },
      `${figure(this.#numTokens)} tokens · first after ${milliseconds((first - begun) / 1000)}${pace}`,
      this.#reason === "length" && [" ", badge("cut off", "warn", "max tokens was reached")],
      this.#reason === "stopped" && [" ", badge("stopped", "warn")],
    );
  }

  #opinions() {
    if (this.isRunning || !this.#version || !this.text) return null;
    const thumb = (rating, label) =>
      signButton(rating, label, {
        kind: this.#given === rating ? "quiet on" : "quiet",
        "aria-pressed": String(this.#given === rating),
        onclick: () => this.#say("rating", rating),
      });
    return h(
      "span",
      { class: "opinions" },
      thumb("up", "A good answer"),
      thumb("down", "A bad answer"),
      signButton("edit", "Say what it should have been", {
        kind: this.#given === "edit" ? "quiet on" : "quiet",
        onclick: () => {
          this.#draft = this.text;
          this.redraw();
        },
      }),
    );
  }

  #editor() {
    return h(
      "form",
      {
        class: "editor",
        onsubmit: (event) => {
          event.preventDefault();
          this.#say("edit", this.#draft);
        },
      },
      h("textarea", {
        class: "input",
        rows: 4,
        "aria-label": "What the answer should have been",
        value: this.#draft,
        oninput: (event) => {
          this.#draft = event.target.value;
        },
      }),
      h(
        "div",
        { class: "row-actions" },
        h("button", { type: "submit", class: "button small primary" }, "Save as feedback"),
        button("Cancel", {
          kind: "small",
          onclick: () => {
            this.#draft = null;
            this.redraw();
          },
        }),
      ),
    );
  }

  async #say(kind, value) {
    this.#refusal = null;
    try {
      await api.post("v1/feedback", { completion_id: this.#id, [kind]: value });
      this.#given = kind === "edit" ? "edit" : value;
      if (kind === "edit") this.#draft = null;
      tell(SAID[this.#given]);
    } catch (error) {
      if (error.code === "completion_not_found")
        error.message = `answers of ${this.model} are not kept; turn feedback on for it under Learning, and ask again`;
      this.#refusal = error;
    }
    this.redraw();
    if (this.#refusal) queueMicrotask(showRefusal);
  }
}

/** Below the last lines there may be no room for it. */
function showRefusal() {
  document.querySelector("#duel .problem")?.scrollIntoView({ block: "nearest" });
}
