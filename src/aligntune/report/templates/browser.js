"use strict";
document.querySelectorAll("[data-browser]").forEach(function (box) {
  const items = Array.from(box.querySelectorAll(".item"));
  const texts = items.map(function (item) { return item.textContent.toLowerCase(); });
  const field = box.querySelector("input");
  const more = box.querySelector("[data-more]");
  const count = box.querySelector("[data-count]");
  const buttons = Array.from(box.querySelectorAll("[data-filter]"));
  const step = 20;
  let kind = "";
  let most = step;
  function draw() {
    const words = field.value.trim().toLowerCase();
    let fitting = 0;
    items.forEach(function (item, i) {
      const fits = (!kind || item.dataset.kind === kind) && (!words || texts[i].includes(words));
      if (fits) { fitting += 1; }
      item.hidden = !fits || fitting > most;
    });
    count.textContent = Math.min(fitting, most) + " of " + fitting + " shown";
    more.hidden = fitting <= most;
  }
  field.addEventListener("input", function () { most = step; draw(); });
  more.addEventListener("click", function () {
    const next = items.filter(function (item) { return !item.hidden; }).length;
    most += step;
    draw();
    const visible = items.filter(function (item) { return !item.hidden; });
    if (visible[next]) { visible[next].querySelector("summary").focus(); }
  });
  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      kind = button.dataset.filter;
      most = step;
      buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
      draw();
    });
  });
  box.querySelector(".controls").hidden = false;
  draw();
});
