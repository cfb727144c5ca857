// The server's API: requests with the tab's key, streams, uploads with progress, errors as errors.

const KEY = "multiflora.key";
const root = new URL("./", document.baseURI);

/** What the API answered instead: its message, which names the remedy, its code and its field. */
export class ApiError extends Error {
  constructor(status, { message, code = "", param = null } = {}, retryAfter = null) {
    super(message ?? `the server answered ${status}`);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

let onStranger = () => {};

/** Have `listener` called when the server wants a key, or another one. */
export function whenKeyIsNeeded(listener) {
  onStranger = listener;
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Use `text` in this tab until it is closed; null forgets it. */
export function useKey(text) {
  if (text === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, text);
}

export const get = (path) => json("GET", path);
export const post = (path, body = {}, headers = {}) => json("POST", path, body, headers);
export const put = (path, body) => json("PUT", path, body);
export const remove = (path) => json("DELETE", path);

/** All of a list that comes in pages, up to `most` of it. */
export async function all(path, most = 1000) {
  const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=${most}`);
  return page.data;
}

async function json(method, path, body, headers = {}) {
  const response = await request(method, path, body, headers);
  return response.json();
}

/** The answer as it is; throws an `ApiError` for any that is no success. */
export async function request(method, path, body, headers = {}, signal = undefined) {
  const options = { method, headers: { ...headers, ...authorization() }, signal };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(new URL(path, root), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) {
    const retryAfter = response.headers.get("retry-after");
    throw refusal(response.status, await response.text(), retryAfter);
  }
  return response;
}

/** The parsed events of a stream, as they come; an error event is thrown. */
export async function* stream(path, body, signal, onOpen = () => {}) {
  const response = await request("POST", path, { ...body, stream: true }, {}, signal);
  onOpen(response.headers);
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const text = event.replace(/^data: ?/, "");
      if (text === "[DONE]") return;
      const parsed = JSON.parse(text);
      if (parsed.error) throw new ApiError(response.status, parsed.error);
      yield parsed;
    }
  }
}

/** Send a form; `onProgress` is told the share that has left. `fetch` cannot tell. */
export function upload(method, path, form, onProgress) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open(method, new URL(path, root));
    for (const [name, value] of Object.entries(authorization()))
      sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
    sending.upload.onload = () => onProgress(1);
    sending.onerror = () => reject(unreachable());
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else
        reject(
          refusal(sending.status, sending.responseText, sending.getResponseHeader("retry-after")),
        );
    };
    sending.send(form);
  });
}

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

function unreachable() {
  return new ApiError(0, {
    code: "unreachable",
    message:
      "the server does not answer; it may be restarting, and this page goes on when it is back",
  });
}

function refusal(status, text, retryAfter) {
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy in between answers in its own way.
  }
  if (status === 401) onStranger();
  return new ApiError(status, error, retryAfter);
}
