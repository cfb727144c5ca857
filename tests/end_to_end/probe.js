// Runs in every page of the tests, before its own scripts: what a person would notice.

window.probe = (() => {
  const violations = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    violations.push(`${event.violatedDirective} ${event.blockedURI}`);
  });

  const canvas = () =>
    document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  let paint = null;

  /** Red, green, blue and opacity, 0 to 255, of any colour that CSS can say. */
  function rgba(color) {
    paint ??= canvas();
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  }

  /** Relative luminance, as WCAG defines it. */
  function luminance(color) {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [red, green, blue] = rgba(color).map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function ground(node) {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  }

  function ownText(node) {
    const texts = [...node.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
    return texts
      .map((one) => one.data)
      .join("")
      .trim();
  }

  /** Words whose contrast is below 4.5, the bar of level AA; what is disabled has none. */
  function faint() {
    return [...document.querySelectorAll("body *")]
      .filter((node) => ownText(node) && node.checkVisibility())
      .filter((node) => !node.closest("svg, :disabled, option, noscript, .skip"))
      .filter((node) => {
        const both = [getComputedStyle(node).color, ground(node)].map(luminance);
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05) < 4.5;
      })
      .map((node) => `${node.tagName}.${node.className}: ${ownText(node).slice(0, 40)}`);
  }

  /** Controls that a screen reader has no name for. */
  function nameless() {
    return [...document.querySelectorAll("button, a, input, select, textarea")]
      .filter((node) => {
        const label = node.labels?.[0]?.textContent ?? "";
        return !`${node.textContent}${node.getAttribute("aria-label") ?? ""}${label}`.trim();
      })
      .map((node) => node.outerHTML.slice(0, 120));
  }

  return { violations, faint, nameless };
})();
