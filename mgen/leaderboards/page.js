
"use strict";
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(one("#data").textContent);
const root = document.documentElement;

// An element with attributes and text; text is never read as HTML.
const DRAWN = ["svg", "g", "line", "path", "text", "circle", "rect"];
function make(name, attributes = {}, ...content) {
  const space = one(DRAWN.includes(name) ? "svg" : "body").namespaceURI;
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

// ---------------------------------------------------------------------- light and dark

one("#theme").hidden = false;
one("#theme").addEventListener("click", () => {
  const isDark = getComputedStyle(root).colorScheme === "dark" ||
    (root.style.colorScheme === "" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = isDark ? "light" : "dark";
});

// ---------------------------------------------------------------------- sorting and filtering

const body = one("#main tbody"), heads = all("#main thead th");
const given = all("tr", body);

function sortBy(column) {
  const head = heads[column], now = head.getAttribute("aria-sort");
  const opposite = { ascending: "descending", descending: "ascending" };
  const order = opposite[now] ?? head.dataset.first;
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.children[column], value = cell.dataset.value;
    if (column === 0) return [0, one("span", cell).textContent];
    return value === undefined ? [2, 0] : [Number(cell.dataset.tier ?? 0), Number(value)];
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  // Missing ones are last in either order, averages of fewer tasks before them.
  const keyed = given.map((row) => [row, ...key(row)]);
  keyed.sort((a, b) => a[1] - b[1] || sign * compare(a[2], b[2]));
  body.append(...keyed.map(([row]) => row));
  for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
}
heads.forEach((head, i) => one("button", head).addEventListener("click", () => sortBy(i)));

const form = one("#filter");
function filter() {
  const name = one("#name").value.trim().toLowerCase(), group = one("#group")?.value ?? "";
  const kinds = all("#kinds input:checked").map((box) => box.value);
  for (const row of given) {
    const own = one("span", row.firstElementChild).textContent.toLowerCase();
    row.hidden = !own.includes(name) || !kinds.includes(row.dataset.kind);
  }
  for (const cell of all("#main [data-group]")) {
    cell.hidden = group !== "" && cell.dataset.group !== group;
  }
  const tasks = all("#main thead .task");
  const count = (them) => `${them.filter((one) => !one.hidden).length} of ${them.length}`;
  one("#shown").textContent = `${count(given)} entries and ${count(tasks)} tasks shown. ` +
    "Ranks, win shares, averages and marks are those over all entries and tasks, whatever is shown.";
}
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();

// ---------------------------------------------------------------------- tasks

function openTask() {
  const isNamed = (task) => [task.id, encodeURIComponent(task.id)].includes(location.hash.slice(1));
  const task = all("details.of-task").find(isNamed);
  if (!task) return;
  task.open = true;
  task.scrollIntoView();
}
addEventListener("hashchange", openTask);
for (const link of all('a[href^="#task-"]')) {
  link.addEventListener("click", () => setTimeout(openTask));  // again, though the hash is the same
}
for (const task of all("details.of-task")) {
  task.addEventListener("toggle", () => {
    if (!task.open) return;
    if (one(".pairs", task) && !one(".pairs select", task)) compareWith(task);
    if (location.hash !== "#" + task.id) history.replaceState(null, "", "#" + task.id);
  });
}
openTask();

function probability(p) {
  if (p === null) return "-";
  return p < 1e-4 ? "< 0.0001" : String(Number(p.toPrecision(2)));
}

// The comparisons of a task with one of its entries, best difference first.
function compareWith(task) {
  const { pairs, best, digits } = data.tasks[task.id], place = one(".pairs", task);
  const known = [...new Set(pairs.flatMap((pair) => pair.slice(0, 2)))].sort((a, b) => a - b);
  const names = known.map((i) => make("option", { value: i }, data.entries[i][0]));
  const select = make("select", {}, ...names), table = make("table");
  select.value = best ?? known[0];
  const number = (value) => (value === null ? "-" : (value > 0 ? "+" : "") + value.toFixed(digits));
  const draw = () => {
    const chosen = Number(select.value);
    const lines = pairs.filter(([a, b]) => a === chosen || b === chosen).map((pair) => {
      const [a, b, difference, low, high, p, corrected, better] = pair, isFirst = a !== chosen;
      const turn = (value) => (value === null ? null : isFirst ? value : -value);
      const other = isFirst ? a : b;
      const verdict = better < 0 ? "not distinguishable" : better === other ? "better" : "worse";
      const ends = isFirst ? [low, high] : [turn(high), turn(low)];
      return [data.entries[other][0], turn(difference), ends, p, corrected, verdict];
    });
    const isHigher = one(`a[href="#${CSS.escape(task.id)}"]`)?.closest("th").dataset.first;
    lines.sort((a, b) => (isHigher === "ascending" ? a[1] - b[1] : b[1] - a[1]));
    const head = ["entry", "difference", "95 % interval", "p", "p corrected", "verdict"];
    const isText = [true, false, false, false, false, true];
    const row = (cell, texts) => make("tr", {}, ...texts.map((text, i) =>
      make(cell, { class: isText[i] ? "verdict" : "n" }, text)));
    table.replaceChildren(row("th", head), ...lines.map(([name, difference, ends, p, corrected, is]) =>
      row("td", [name, number(difference), `[${ends.map(number).join(", ")}]`, probability(p),
        probability(corrected), is])));
  };
  select.addEventListener("change", draw);
  draw();
  place.replaceChildren(make("label", { class: "soft" }, "entry minus ", select),
    make("div", { class: "wide" }, table));
}

// ---------------------------------------------------------------------- scores against costs

const COSTS = [["training seconds", (p) => p[2]], ["parameters", (p) => data.entries[p[0]][2]],
  ["peak memory, GB", (p) => p[3]]];
const MARKS = { model: ["circle", { r: 5 }], reference: ["rect", { x: -4.5, y: -4.5, width: 9, height: 9 }],
  published: ["path", { d: "M0-6.5L6.5 0L0 6.5L-6.5 0Z" }] };
const chart = one("#chart"), score = one("#score"), against = one("#against");
score.append(...data.scores.map((own, i) => make("option", { value: i }, own.name)));
against.append(...COSTS.map(([name], i) => make("option", { value: i }, name)));
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const first of [1, 2, 5]) found.push(first * 10 ** power);
  }
  const inside = found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  const powers = inside.filter((tick) => Number.isInteger(Math.round(Math.log10(tick) * 1e6) / 1e6));
  return inside.length > 8 && powers.length > 1 ? powers : inside;
}

function ticks(low, high) {
  const rough = (high - low) / 6, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 2.5, 5, 10].find((round) => round * size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function draw() {
  const chosen = data.scores[score.value], [costName, cost] = COSTS[against.value];
  const points = chosen.points.filter((p) => p[1] !== null && cost(p) > 0);
  const left = chosen.points.filter((p) => !points.includes(p));
  const every = chosen === data.scores[0] && costName === COSTS[0][0] ? " on every task" : "";
  const why = (p) => p[4] || (p[1] === null ? "no score" : `no ${costName}${every}`);
  one("#undrawn").textContent = left.length ? "Not drawn: " +
    left.map((p) => `${data.entries[p[0]][0]} (${why(p)})`).join("; ") : "";
  chart.replaceChildren();
  if (!points.length) return;
  const width = chart.clientWidth, height = 380, box = { left: 52, right: width - 12, top: 14, bottom: 334 };
  const xs = points.map((p) => Math.log10(cost(p))), ys = points.map((p) => p[1]);
  const ends = (them, least) => {
    const low = Math.min(...them), high = Math.max(...them), room = (high - low) * 0.07 || least;
    return [low - room, high + room];
  };
  const [x0, x1] = ends(xs, 0.3), [y0, y1] = ends(ys, Math.abs(ys[0]) / 10 || 1);
  const x = (value) => box.left + ((Math.log10(value) - x0) / (x1 - x0)) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - y0) / (y1 - y0)) * (box.bottom - box.top);
  const svg = make("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${chosen.name} against ${costName}` });
  const text = (at, to, anchor, words) => make("text", { x: at, y: to, "text-anchor": anchor }, words);
  for (const tick of ticks(y0, y1)) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
      text(box.left - 6, y(tick) + 4, "end", String(Number(tick.toPrecision(6)))));
  }
  for (const tick of logTicks(10 ** x0, 10 ** x1)) {
    svg.append(make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom }),
      text(x(tick), box.bottom + 17, "middle", short.format(tick)));
  }
  svg.append(text((box.left + box.right) / 2, box.bottom + 38, "middle", `${costName} (log scale)`));
  const sign = chosen.higher ? 1 : -1;
  const byCost = [...points].sort((a, b) => cost(a) - cost(b) || sign * (b[1] - a[1]));
  const taken = points.map((p) => [x(cost(p)) - 8, y(p[1]) - 8, x(cost(p)) + 8, y(p[1]) + 8]);
  let best = -Infinity, line = "", at = [];  // the best that can be had for a cost
  for (const p of byCost) {
    if (sign * p[1] <= best) continue;
    best = sign * p[1];
    const to = [x(cost(p)), y(p[1])];
    if (line) taken.push([at[0], at[1] - 1, to[0], at[1] + 1], [to[0] - 1, to[1], to[0] + 1, at[1]]);
    line += line ? `H${to[0]}V${to[1]}` : `M${to.join(" ")}`;
    at = to;
  }
  svg.append(make("path", { class: "front", d: line }));
  for (const p of byCost) svg.append(point(p, x(cost(p)), y(p[1]), costName, cost(p), chosen.name));
  for (const p of byCost.reverse()) {
    svg.append(...label(data.entries[p[0]][0], x(cost(p)), y(p[1]), taken, box));
  }
  chart.append(svg);
}

function point(p, x, y, costName, value, scoreName) {
  const [name, kind] = data.entries[p[0]], [shape, attributes] = MARKS[kind];
  const words = `${name}\n${scoreName} ${Number(p[1].toPrecision(4))}\n` +
    `${costName} ${Number(value.toPrecision(4)).toLocaleString("en")}`;
  const group = make("g", { tabindex: 0, role: "img", "aria-label": words, class: kind,
    transform: `translate(${x} ${y})` }, make("circle", { class: "halo", r: 10 }), make(shape, attributes));
  const show = () => {
    hide();
    const tip = make("div", { id: "tip", role: "status" }, words);
    chart.append(tip);
    const at = Math.max(0, Math.min(x + 12, chart.clientWidth - tip.offsetWidth));
    tip.style.left = `${at}px`;
    tip.style.top = `${y > tip.offsetHeight + 14 ? y - tip.offsetHeight - 14 : y + 14}px`;
  };
  for (const event of ["pointerenter", "focus", "click"]) group.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) group.addEventListener(event, hide);
  return group;
}

function hide() {
  one("#tip")?.remove();
}

// A name beside its point where there is room; otherwise the point's tip has it.
function label(words, x, y, taken, box) {
  const cut = words.length > 30 ? words.slice(0, 29) + "…" : words, wide = 6.2 * cut.length;
  const places = [["start", 10, 4], ["end", -10, 4], ["end", -6, -9], ["start", 6, -9],
    ["start", 6, 18], ["end", -6, 18], ["middle", 0, -12], ["middle", 0, 20]];
  for (const [anchor, dx, dy] of places) {
    const start = x + dx - { start: 0, middle: wide / 2, end: wide }[anchor];
    const area = [start, y + dy - 10, start + wide, y + dy + 2];
    const isFree = area[0] >= box.left && area[2] <= box.right && area[1] >= 0 && area[3] <= box.bottom &&
      !taken.some((t) => t[0] < area[2] && area[0] < t[2] && t[1] < area[3] && area[1] < t[3]);
    if (!isFree) continue;
    taken.push(area);
    return [make("text", { class: "name", x: x + dx, y: y + dy, "text-anchor": anchor }, cut)];
  }
  return [];
}

one("#axes").hidden = chart.hidden = false;
one("#axes").addEventListener("input", draw);
addEventListener("resize", draw);
addEventListener("keydown", (event) => event.key === "Escape" && hide());
draw();
