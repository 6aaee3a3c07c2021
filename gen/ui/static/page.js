// What a page does before the server hears of it: keys, pictures that are dropped on it, the slider that compares two.
(() => {
  const press = (action) => document.querySelector(`[data-action="${action}"]:not([disabled])`)?.click();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      press("draw");
    } else if (event.key === "Escape" && !document.querySelector(".q-dialog, .q-menu")) {
      press("stop");
    }
  });
  let depth = 0;
  const files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const dropping = (on) => document.body.classList.toggle("fs-dropping", on);
  window.addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; dropping(true); } });
  window.addEventListener("dragleave", (event) => { if (files(event)) { depth = Math.max(0, depth - 1); dropping(depth > 0); } });
  window.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  window.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    dropping(false);
    const box = document.querySelector("[data-drop]");
    if (box) getElement(Number(box.id.slice(1))).$refs.qRef.addFiles(event.dataTransfer.files);
  });
  document.addEventListener("input", (event) => {
    const range = event.target.closest?.(".fs-range");
    range?.parentElement.querySelector(".fs-compare")?.style.setProperty("--cut", `${range.value}%`);
  });
})();
