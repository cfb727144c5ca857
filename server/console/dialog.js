// Questions that must be answered before anything else, and notices that go by themselves.

import { draw, h, icon } from "./dom.js";
import { button, sentence, signButton } from "./part.js";

const SECONDS = 6;
const notices = [];
let next = 0;

/** Ask before what cannot be undone; resolves to whether to do it. */
export function confirm({ title, text, action }) {
  return new Promise((resolve) => {
    const end = (answer) => {
      resolve(answer);
      close();
    };
    open(title, { oncancel: () => resolve(false) }, () => [
      h("p", null, text),
      h(
        "div",
        { class: "dialog-end" },
        button("Keep it", { onclick: () => end(false) }),
        button(action, { kind: "danger", onclick: () => end(true) }),
      ),
    ]);
  });
}

/** Open a dialog that `content` draws; returns how to draw it again. One is open at a time. */
export function open(title, { oncancel = () => {}, canClose = true } = {}, content) {
  const place = document.getElementById("dialogs");
  draw(place);
  const redraw = () =>
    draw(
      place,
      h(
        "dialog",
        {
          class: "dialog",
          "aria-labelledby": "dialog-title",
          ref: (node) => node.showModal(),
          oncancel: (event) => {
            event.preventDefault();
            if (canClose) {
              oncancel();
              close();
            }
          },
        },
        h(
          "div",
          { class: "dialog-head" },
          h("h2", { id: "dialog-title" }, title),
          canClose &&
            signButton("cross", "Close", {
              kind: "quiet",
              onclick: () => {
                oncancel();
                close();
              },
            }),
        ),
        h("div", { class: "dialog-body" }, content()),
      ),
    );
  redraw();
  return redraw;
}

export function close() {
  // Closing gives the focus back to where it was; removing alone does not.
  document.querySelector("#dialogs dialog")?.close();
  draw(document.getElementById("dialogs"));
}

/** Say that something was done. */
export function tell(text) {
  show({ text, sign: "check", kind: "good" }, SECONDS);
}

/** Say what the API refused; it stays until it is dismissed. */
export function complain(error) {
  if (error.name === "AbortError") return;
  show({ text: sentence(error.message), more: error.code, sign: "warn", kind: "bad" }, null);
}

function show(notice, seconds) {
  const kept = { ...notice, key: next++ };
  notices.push(kept);
  if (seconds !== null) setTimeout(() => dismiss(kept), 1000 * seconds);
  refresh();
}

function dismiss(notice) {
  const index = notices.indexOf(notice);
  if (index >= 0) notices.splice(index, 1);
  refresh();
}

function refresh() {
  draw(
    document.getElementById("notices"),
    notices.map((one) =>
      h(
        "div",
        { key: one.key, class: `notice ${one.kind}` },
        icon(one.sign),
        h("span", null, one.text, one.more && [" ", h("code", null, one.more)]),
        signButton("cross", "Dismiss", { kind: "quiet", onclick: () => dismiss(one) }),
      ),
    ),
  );
}
