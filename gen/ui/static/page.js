// What a page does before the server hears of it: keys, pictures that are dropped on it, the slider that compares two.
(() => {
  // of the tab that is shown: "draw" and "draw-edit", "stop" and "stop-edit"
  const press = (action) => [...document.querySelectorAll(`[data-action^="${action}"]:not([disabled])`)].find((one) => one.offsetParent)?.click();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation(); // a button in focus would take it for its own
      const field = document.activeElement;
      if (field?.getAttribute("role") === "combobox") field.blur(); // what is typed there counts, too
      press("draw");
    } else if (event.key === "Escape" && !document.querySelector(".q-dialog, .q-menu")) {
      press("stop");
    }
  }, true);
  // what is typed into a list: Quasar would forget it without a word, and before the field is left
  let typed = null;
  const isList = (field) => field.matches?.("input[role=combobox][data-field]");
  const leave = (field) => {
    if (typed?.field === field) getElement(Number(field.id.slice(1)))?.$emit("typed", typed.text);
    typed = null;
  };
  document.addEventListener("input", (event) => { if (isList(event.target)) typed = { field: event.target, text: event.target.value }; }, true);
  document.addEventListener("focusout", (event) => { if (isList(event.target) && !event.relatedTarget?.closest(".q-menu")) leave(event.target); }, true);
  document.addEventListener("click", (event) => { if (event.target.closest?.(".q-menu")) typed = null; }, true); // one was chosen
  document.addEventListener("keydown", (event) => {
    const field = event.target;
    if (!isList(field)) return;
    if (event.key === "Escape") typed = null;
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey)
      setTimeout(() => (typed?.text === field.value ? leave(field) : (typed = null)), 0); // else one of the list was chosen
  }, true);
  // which of two is better, by the arrows
  const sides = { ArrowLeft: "left-better", ArrowRight: "right-better", ArrowDown: "neither" };
  document.addEventListener("keydown", (event) => {
    const own = event.target.closest?.("input, textarea, [role=tab], [role=combobox], .q-dialog");
    const button = sides[event.key] && !own && !event.altKey && document.querySelector(`[data-action=${sides[event.key]}]`);
    if (button?.offsetParent && !button.disabled) { event.preventDefault(); button.click(); }
  });
  // the queue: its rows are made anew when it changes, and the focus stays with its job
  let held = null;
  const keepFocus = new MutationObserver(() => {
    if (!held || document.activeElement !== document.body) return;
    const row = document.querySelector(`[data-job="${held.job}"]`) || document.querySelector("[data-job]");
    (row?.querySelector(`[data-job-action="${held.action}"]`) || row)?.focus();
  });
  document.addEventListener("focusin", (event) => {
    const row = event.target.closest?.("[data-job]");
    held = row ? { job: row.dataset.job, action: event.target.dataset.jobAction || "" } : null;
    if (row) keepFocus.observe(row.closest("[data-queue]"), { childList: true, subtree: true });
  });
  document.addEventListener("keydown", (event) => {
    const row = event.target.closest?.("[data-job]");
    if (!row) return;
    const up = event.key === "ArrowUp", down = event.key === "ArrowDown";
    if (event.altKey && (up || down)) row.querySelector(`[data-job-action=${up ? "sooner" : "later"}]`)?.click();
    else if (up || down) (up ? row.previousElementSibling : row.nextElementSibling)?.focus();
    else if (event.key === "Delete") row.querySelector("[data-job-action=cancel], [data-job-action=end], [data-job-action=forget]")?.click();
    else return;
    event.preventDefault();
  });
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
