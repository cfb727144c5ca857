// Trees of plain objects, and the least change that makes the page look like them.

const SVG = "http://www.w3.org/2000/svg";
const drawn = new WeakMap();

/** A wanted element. A `key` keeps an element's identity while its neighbours come and go. */
export function h(tag, props, ...children) {
  const { key, ...rest } = props ?? {};
  return { tag, key, props: rest, children: wanted(children) };
}

/** Change `parent` as little as it takes to hold `children`; what a user typed stays. */
export function draw(parent, ...children) {
  reconcile(parent, wanted(children));
}

function wanted(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && typeof child !== "boolean")
    .map((child) => (typeof child === "object" ? child : { tag: "#text", text: String(child) }));
}

function reconcile(parent, children) {
  const keyed = new Map();
  for (const node of parent.childNodes) {
    const key = drawn.get(node)?.key;
    if (key !== undefined) keyed.set(key, node);
  }
  let next = parent.firstChild;
  for (const child of children) {
    let node = child.key === undefined ? next : (keyed.get(child.key) ?? null);
    if (!fits(node, child)) {
      node = create(child, parent);
      parent.insertBefore(node, next);
    } else if (node === next) {
      next = next.nextSibling;
    } else {
      parent.insertBefore(node, next);
    }
    update(node, child);
  }
  while (next !== null) {
    const after = next.nextSibling;
    next.remove();
    next = after;
  }
}

function fits(node, child) {
  const before = node && drawn.get(node);
  return Boolean(before) && before.tag === child.tag && before.key === child.key;
}

function create(child, parent) {
  if (child.tag === "#text") return document.createTextNode(child.text);
  const isSvg =
    child.tag === "svg" || (parent.namespaceURI === SVG && parent.tagName !== "foreignObject");
  return isSvg ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
}

function update(node, child) {
  const before = drawn.get(node);
  drawn.set(node, child);
  if (child.tag === "#text") {
    if (node.data !== child.text) node.data = child.text;
    return;
  }
  const old = before?.props ?? {};
  for (const name of Object.keys(old)) if (!(name in child.props)) assign(node, name, undefined);
  for (const [name, value] of Object.entries(child.props)) {
    if (name !== "value" && name !== "ref" && old[name] !== value) assign(node, name, value);
  }
  reconcile(node, child.children);
  // A select has its value from its options, which may be others by now.
  const { value } = child.props;
  const isStale = value !== undefined && (old.value !== value || child.tag === "select");
  if (isStale && node.value !== String(value)) node.value = value;
  if (!before) child.props.ref?.(node);
}

function assign(node, name, value) {
  if (name.startsWith("on")) {
    node[name] = value ?? null;
  } else if (name === "checked" || name === "open" || name === "indeterminate") {
    node[name] = Boolean(value);
  } else if (value === undefined || value === null || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? "" : value);
  }
}

const PATHS = {
  adapters:
    "M12 3v18M12 9c-4 0-6-2-6-5 4 0 6 2 6 5zm0 3c4 0 6-2 6-5-4 0-6 2-6 5zm0 6c-4 0-6-2-6-5 4 0 6 2 6 5z",
  playground: "M4 5h7v11H8l-3 3v-3H4zM15 8h5v10h-1v2.500L16.500 18H13",
  merge: "M6 4v4c0 4 6 4 6 8v4M18 4v4c0 4-6 4-6 8",
  training: "M4 4v16h16M7 8c3 7 6 8 12 9",
  learning: "M20 12a8 8 0 1 1-2.500-5.800M20 3v4h-4M12 8v4l3 2",
  keys: "M8 12a4 4 0 1 0 0 .1zm0 0h13v4M16.500 12v3",
  upload: "M12 16V4m0 0L7 9m5-5 5 5M4 16v4h16v-4",
  up: "M7 11v9H4v-9zm0 0 4-8c1.700 0 2.600 1.300 2.300 2.800L12.700 9H19a1.800 1.800 0 0 1 1.800 2.200l-1.500 7A2.200 2.200 0 0 1 17.100 20H7",
  down: "M17 13V4h3v9zm0 0-4 8c-1.700 0-2.600-1.300-2.300-2.800l.6-3.200H5a1.800 1.800 0 0 1-1.800-2.200l1.500-7A2.200 2.200 0 0 1 6.900 4H17",
  edit: "M4 20h4L19.500 8.500l-4-4L4 16zM13 7l4 4",
  pin: "M9 3h6l-1 7 4 4H6l4-4zM12 14v7",
  check: "m5 12.500 4.500 4.500L19 7",
  cross: "M6 6l12 12M18 6 6 18",
  warn: "M12 4 2.500 20h19zM12 10v4.500M12 17.300v.2",
  dot: "M12 9.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5z",
  plus: "M12 5v14M5 12h14",
  back: "M15 5l-7 7 7 7",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  light:
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2",
  dark: "M20 14.500A8.500 8.500 0 0 1 9.500 4 8.500 8.500 0 1 0 20 14.500z",
  auto: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18z",
};

/** A drawing beside words; it says nothing by itself. */
export function icon(name, extra = "") {
  const props = { class: `icon ${extra}`.trim(), viewBox: "0 0 24 24", "aria-hidden": "true" };
  return h("svg", props, h("path", { d: PATHS[name] }));
}
