// What a page does before the server hears of it: keys, pictures that are dropped on it, the slider that compares two.
(() => {
  // of the tab that is shown: "draw" and "draw-edit", "stop" and "stop-edit"
  const press = (action) => [...document.querySelectorAll(`[data-action^="${action}"]:not([disabled])`)].find((one) => one.offsetParent)?.click();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation(); // a button in focus would take it for its own
      press("draw");
    } else if (event.key === "Escape" && !document.querySelector(".q-dialog, .q-menu")) {
      press("stop");
    }
  }, true);
  let depth = 0;
  const files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  const taking = () => [...document.querySelectorAll("[data-upload]")].find((one) => one.offsetParent); // of the tab that is shown
  const dropping = (on) => {
    document.body.classList.toggle("fs-dropping", on);
    document.body.classList.toggle("fs-taking", on && Boolean(taking()));
  };
  window.addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; dropping(true); } });
  window.addEventListener("dragleave", (event) => { if (files(event)) { depth = Math.max(0, depth - 1); dropping(depth > 0); } });
  window.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  window.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    dropping(false);
    const box = taking() || document.querySelector("[data-drop]");
    if (box) getElement(Number(box.id.slice(1))).$refs.qRef.addFiles(event.dataTransfer.files);
  });
  document.addEventListener("input", (event) => {
    const range = event.target.closest?.(".fs-range");
    range?.parentElement.querySelector(".fs-compare")?.style.setProperty("--cut", `${range.value}%`);
  });
})();
