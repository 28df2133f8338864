"use strict";
// Sorts and filters the cards of the gallery; all values are in their data attributes.
const gallery = document.getElementById("gallery");
const cards = gallery ? [...gallery.children] : [];
const order = document.getElementById("order");
const search = document.getElementById("search");
const found = document.getElementById("found");

function arrange() {
  const [key, direction] = order.value.split(":");
  const sign = direction === "down" ? -1 : 1;
  const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true });
  cards.sort((a, b) => {
    if (key === "name") return sign * byName(a, b);
    const values = JSON.parse(a.dataset.values), others = JSON.parse(b.dataset.values);
    return sign * ((values[key] ?? -1) - (others[key] ?? -1)) || byName(a, b);
  });
  gallery.append(...cards);
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const card of cards) {
    const text = card.dataset.text.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
    n += card.hidden ? 0 : 1;
  }
  found.textContent = n === cards.length ? `${n} slides` : `${n} of ${cards.length} slides`;
}

if (gallery) {
  order.addEventListener("change", arrange);
  search.addEventListener("input", filter);
  arrange();
  filter();
}
