"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  root.classList.add("js");

  // One metric at a time. Without scripts all of them stand below each other.
  const buttons = all(".metrics button");
  const choose = (metric) => {
    all("[data-metric]").forEach((part) => part.classList.toggle("on", part.dataset.metric === metric));
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.value === metric)));
    hide();
  };
  buttons.forEach((button) => button.addEventListener("click", () => choose(button.value)));

  // Tables sort by their heads: numbers by value, words by letters; cells without a value come last.
  const sort = (button) => {
    const head = button.closest("th");
    const at = Array.from(head.parentNode.children).indexOf(head);
    const numeric = head.dataset.kind === "number";
    const falling = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !numeric);
    const body = head.closest("table").tBodies[0];
    const sign = falling ? 1 : -1;
    const value = (row) => row.children[at].dataset.value;
    const rows = Array.from(body.rows);
    rows.sort((one, other) => {
      const a = value(one), b = value(other);
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
    });
    all("th", head.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "ascending" : "descending");
    body.append(...rows);
  };
  all("button.sort").forEach((button) => button.addEventListener("click", () => sort(button)));

  // Values of marks, by mouse or finger: the browser's own tips are slow, and phones have none.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let held = null;
  function hide() {
    tip.hidden = true;
    if (held) held.classList.remove("held");
    held = null;
  }
  const show = (mark) => {
    hide();
    held = mark;
    mark.classList.add("held");
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const place = mark.getBoundingClientRect();
    const middle = place.left + place.width / 2 - tip.offsetWidth / 2;
    const left = Math.max(6, Math.min(middle, root.clientWidth - tip.offsetWidth - 6));
    const above = place.top - tip.offsetHeight - 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : place.bottom + 8) + scrollY}px`;
  };
  all(".chart .mark").forEach((mark) => {
    const title = mark.querySelector("title");
    if (!title) return;
    mark.dataset.tip = title.textContent;
    title.remove();
    mark.addEventListener("pointerenter", () => show(mark));
    mark.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".mark")) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  if (buttons.length) choose(buttons[0].value);
})();
