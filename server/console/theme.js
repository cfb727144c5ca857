// Runs before the page is painted, so that no other theme is seen first.
(() => {
  const kept = localStorage.getItem("multiflora.theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
