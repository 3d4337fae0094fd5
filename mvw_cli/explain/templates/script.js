
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const answer = document.getElementById("answer");
  const tokens = [...answer.querySelectorAll(".t")];
  const layer = document.getElementById("layer");
  const line = document.getElementById("says");
  const heat = [...document.querySelectorAll(".heat rect")].map(
    rect => [rect, Number(rect.dataset.v)]);
  const raw = atob(data.weights.data);
  const bytes = Uint8Array.from(raw, sign => sign.charCodeAt(0));
  const levels = new DataView(bytes.buffer);
  const count = data.weights.columns;
  let chosen = tokens.findIndex(token => token.getAttribute("aria-selected") === "true");

  const percent = part => {
    const value = 100 * part;
    return value.toFixed(value >= 10 ? 1 : value >= 0.1 ? 2 : 4) + " %";
  };
  const weights = row => Array.from({length: count}, (_, v) =>
    levels.getUint16(2 * (row * count + v), true) / data.weights.full_scale
      * data.weights.scales[row]);

  function sentence(token, place, row) {
    const of = data.layers_in_page[place - 1];
    if (token.row === null) return "no vision left. It had no access to the picture.";
    const index = data.layers.indexOf(of);
    const mass = place ? token.mass_by_layer[index] : token.mass;
    if (mass === null) return `no vision left at layer ${of}.`;
    const over = place ? `at layer ${of}` : layer.options[0].textContent;
    const crossed = data.measure === "cross-attention";
    let said = crossed
      ? `cross-attention added ${percent(token.mass)} of the stream.`
      : `${percent(mass)} of its attention went to vision, ${over}.`;
    if (data.patches === null) return said;
    const placed = row.filter((_, v) => data.patches[v] !== null);
    const sum = list => list.reduce((one, other) => one + other, 0);
    said += ` Full heat: ${percent(placed.length ? Math.max(...placed) : 0)} on one patch.`;
    if (placed.length < count) {
      said += ` On vision tokens of no place: ${percent(Math.max(0, sum(row) - sum(placed)))}.`;
    }
    return said;
  }

  function show() {
    if (chosen < 0) return;
    const token = data.tokens[chosen], place = Number(layer.value);
    const row = token.row === null ? new Array(count).fill(0) : weights(token.row + place);
    let largest = 0;
    for (const [, v] of heat) largest = Math.max(largest, row[v]);
    for (const [rect, v] of heat) {
      rect.setAttribute("fill-opacity", (largest ? row[v] / largest : 0).toFixed(3));
    }
    const bold = document.createElement("b"), quoted = document.createElement("q");
    bold.textContent = `Token ${token.step}`;
    quoted.textContent = token.text;
    line.replaceChildren(bold, " ", quoted, ": ", sentence(token, place, row));
    document.body.classList.toggle("blind", token.row === null);
  }

  function choose(number) {
    if (!tokens.length) return;
    tokens[chosen].setAttribute("aria-selected", "false");
    chosen = Math.min(Math.max(number, 0), tokens.length - 1);
    tokens[chosen].setAttribute("aria-selected", "true");
    answer.setAttribute("aria-activedescendant", tokens[chosen].id);
    show();
    tokens[chosen].scrollIntoView({block: "nearest"});
  }

  answer.addEventListener("click", event => {
    const token = event.target.closest(".t");
    if (token) choose(Number(token.dataset.t));
  });
  answer.addEventListener("keydown", event => {
    const to = {
      ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: tokens.length - 1,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(to);
  });
  document.getElementById("back").addEventListener("click", () => choose(chosen - 1));
  document.getElementById("next").addEventListener("click", () => choose(chosen + 1));
  layer.addEventListener("change", show);
  document.body.classList.add("script");
  show();
})();
