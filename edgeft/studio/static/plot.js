// Lines over steps as SVG: [{name, look, points: [[step, value], …]}] -> a picture with axes and a legend.

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 220, 44, 12, 10, 24];
const MAX_POINTS = 400;

function svg(name, attributes, ...children) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((s) => s * power >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// Fewer points than pixels: the mean of neighbours.
function thinned(points) {
  const size = Math.ceil(points.length / MAX_POINTS);
  if (size < 2) return points;
  const found = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    found.push([part.at(-1)[0], part.reduce((sum, [, y]) => sum + y, 0) / part.length]);
  }
  return found;
}

// The mean of the neighbours on both sides, as the bright line over the points themselves.
function smoothed(points) {
  const reach = Math.max(1, Math.min(12, Math.round(points.length / 40)));
  return points.map(([x], i) => {
    const part = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, part.reduce((sum, [, y]) => sum + y, 0) / part.length];
  });
}

export function drawCurves(box, lines, smooth) {
  if (!box) return;
  const every = lines.flatMap(({ points }) => points);
  if (every.length < 1) return box.replaceChildren();
  const xs = every.map(([x]) => x), ys = every.map(([, y]) => y).sort((a, b) => a - b);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1)];
  let [y0, y1] = [ys[0], ys[Math.min(ys.length - 1, Math.floor(ys.length * 0.99))]];
  if (!(y1 > y0)) [y0, y1] = [y0 - 0.5, y0 + 0.5];
  const pad = (y1 - y0) * 0.06;
  [y0, y1] = [y0 >= 0 ? Math.max(0, y0 - pad) : y0 - pad, y1 + pad];
  const x = (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((Math.min(value, y1) - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const parts = [];
  for (const tick of ticks(y0, y1, 6)) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    parts.push(svg("text", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of ticks(x0, x1, 5)) if (Number.isInteger(tick)) parts.push(svg("text", { x: x(tick), y: HEIGHT - 7, "text-anchor": "middle" }, String(tick)));
  lines.forEach(({ look, points }, i) => {
    const own = `curve line-${look === "validation" ? 1 : i % 6}`, thin = thinned(points);
    const many = smooth && look !== "validation" && look !== "accuracy" && points.length > 30;
    if (many) parts.push(svg("path", { class: `${own} faint`, d: path(thin) }));
    parts.push(svg("path", { class: own, d: path(many ? thinned(smoothed(points)) : thin) }));
    if (points.length <= 30) for (const [a, b] of points) parts.push(svg("circle", { class: `dot line-${look === "validation" ? 1 : i % 6}`, cx: x(a), cy: y(b), r: 2.5 }));
  });
  const said = lines.map(({ name, points }) => `${name}: ${points.at(-1)[1].toPrecision(4)}`).join(", ");
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said }, ...parts);
  const legend = document.createElement("p");
  legend.className = "legend";
  lines.forEach(({ name, look, points }, i) => {
    const key = document.createElement("span");
    key.className = `key line-${look === "validation" ? 1 : i % 6}`;
    key.textContent = `${name} ${points.at(-1)[1].toPrecision(4)}`;
    legend.append(key);
  });
  box.replaceChildren(picture, legend);
}
