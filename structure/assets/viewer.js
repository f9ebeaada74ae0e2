"use strict";
const find = id => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const STEP = 1 / 8, UNKNOWN = 255, CONTACT = 8, NEAR = 3, SIDE = 340;
// AlphaFold's four colours: their order is one of lightness too, and none is told by red against green.
const BANDS = [
  { from: 90, colour: "#0053d6", text: "very high (pLDDT > 90)" },
  { from: 70, colour: "#65cbf3", text: "confident (70 to 90)" },
  { from: 50, colour: "#ffdb13", text: "low (50 to 70)" },
  { from: -Infinity, colour: "#ff7d45", text: "very low (< 50)" },
];
// Of Okabe and Ito; on dark ground the light blue comes first.
const CHAINS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
const DARK_CHAINS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00"];
const chainColour = chain => (dark.matches ? DARK_CHAINS : CHAINS)[chain % CHAINS.length];
const FIRST = "#b1009b", SECOND = "#7a5c00";  // the two residues of a pair
const SHADES = [[8, 48, 107], [66, 146, 198], [247, 251, 255]];  // from 0 to the top, one hue
const band = plddt => BANDS.find(each => plddt > each.from) || BANDS[3];

let viewer = null, current = -1, order = { ...data.order }, shown = null;
let pair = null, kept = false;  // the residues pointed at, by number; whether they stay

async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// ---- the table

function written(column, value) {
  if (value === null) return "–";
  return column.digits === null ? String(value) : value.toFixed(column.digits);
}

function ranked() {
  const { by, down } = order, sign = down ? -1 : 1;
  const key = number => data.items[number].cells[by];
  const numbers = data.items.map((_, number) => number);
  return numbers.sort((a, b) => {
    if (key(a) === null || key(b) === null) return (key(a) === null) - (key(b) === null);
    return sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) || a - b;
  });
}

function list() {
  find("head").replaceChildren(...data.columns.map((column, place) => {
    const head = document.createElement("th"), button = document.createElement("button");
    const own = order.by === place;
    head.scope = "col";
    head.setAttribute("aria-sort", own ? (order.down ? "descending" : "ascending") : "none");
    button.textContent = column.title + (own ? (order.down ? " ▼" : " ▲") : "");
    button.onclick = () => {
      order = { by: place, down: own ? !order.down : column.digits !== null };
      list();
      find("head").children[place].firstChild.focus();
    };
    head.append(button);
    return head;
  }));
  find("rows").replaceChildren(...ranked().map(number => {
    const line = document.createElement("tr"), item = data.items[number];
    line.dataset.number = number;
    line.onclick = () => show(number);
    line.append(...data.columns.map((column, place) => {
      const cell = document.createElement("td"), text = written(column, item.cells[place]);
      if (place === 0) {
        const button = document.createElement("button");
        button.textContent = text;
        button.onkeydown = event => step(event, line);
        cell.append(button);
      } else {
        if (column.is_plddt) cell.append(swatch(band(item.cells[place]).colour));
        cell.append(text);
      }
      return cell;
    }));
    return line;
  }));
  mark();
}

function mark() {
  for (const line of find("rows").children) {
    if (Number(line.dataset.number) === current) line.setAttribute("aria-current", "true");
    else line.removeAttribute("aria-current");
  }
}

function step(event, line) {
  const next = { ArrowDown: line.nextSibling, ArrowUp: line.previousSibling }[event.key];
  if (!next) return;
  event.preventDefault();
  next.querySelector("button").focus();
  show(Number(next.dataset.number));
}

function swatch(colour) {
  const box = document.createElement("span");
  box.className = "swatch";
  box.style.background = colour;
  return box;
}

// ---- a protein

// Residues in the order of the sequence, as the maps count them; `:` parts chains.
function residuesOf(item) {
  const found = [];
  item.sequence.split(":").forEach((letters, chain, all) => [...letters].forEach((letter, place) => {
    const number = item.numbers ? item.numbers[found.length] : place + 1;
    const where = all.length > 1 ? `chain ${chain + 1} ` : "";
    found.push({ chain, number, letter, label: `${where}${letter}${number}`, middles: [], points: [], plddt: null });
  }));
  return found;
}

async function show(number) {
  const item = data.items[number];
  current = number;
  mark();
  const texts = await Promise.all(item.files.map(async file => new TextDecoder().decode(await unpacked(file.text))));
  const matrix = item.matrix && await unpacked(item.matrix);
  if (current !== number) return;  // another one was asked for meanwhile
  pair = null;
  kept = false;
  shown = { item, texts, matrix, residues: residuesOf(item), models: [] };
  find("name").textContent = item.name;
  offer();
  if (viewer) drawModels();
  drawMaps();
  tell();
}

// Where the backbone puts the C-beta, glycine's too (Dauparas et al. 2022, doi:10.1126/science.add2187).
function cBeta(n, ca, c) {
  const b = [ca.x - n.x, ca.y - n.y, ca.z - n.z], d = [c.x - ca.x, c.y - ca.y, c.z - ca.z];
  const cross = [b[1] * d[2] - b[2] * d[1], b[2] * d[0] - b[0] * d[2], b[0] * d[1] - b[1] * d[0]];
  const [x, y, z] = [ca.x, ca.y, ca.z].map(
    (from, axis) => from - 0.58273431 * cross[axis] + 0.56802827 * b[axis] - 0.54067466 * d[axis]);
  return { x, y, z };
}

function drawModels() {
  viewer.removeAllModels();
  viewer.removeAllShapes();
  viewer.removeAllLabels();
  const drawn = data.is_overlay ? shown.texts : shown.texts.slice(0, 1);
  shown.models = drawn.map((text, place) => viewer.addModel(text, shown.item.files[place].ending));
  const places = new Map(shown.residues.map((residue, place) => [`${residue.chain} ${residue.number}`, place]));
  shown.models.forEach((model, which) => {
    const chains = [], backbone = shown.residues.map(() => ({}));
    for (const atom of model.selectedAtoms({})) {
      if (!chains.includes(atom.chain)) chains.push(atom.chain);
      atom.chainNumber = chains.indexOf(atom.chain);
      atom.residueNumber = places.get(`${atom.chainNumber} ${atom.resi}`);
      if (atom.residueNumber !== undefined) backbone[atom.residueNumber][atom.atom] = atom;
    }
    shown.residues.forEach((residue, place) => {
      const { N, CA, C } = backbone[place];
      residue.middles[which] = CA;
      residue.points[which] = N && CA && C && cBeta(N, CA, C);
      if (CA && which === 0) residue.plddt = CA.b;
    });
  });
  viewer.setClickable({}, true, atom => touch(atom.residueNumber));
  style();
  whole();
}

function whole() {
  viewer.zoomTo();
  viewer.zoom(1.25);  // it leaves more room than a ribbon needs
  viewer.render();
}

function style() {
  const by = find("colour").value, shape = find("shape").value;
  shown.models.forEach((model, which) => {
    const colorfunc = atom => {
      if (data.is_overlay) return chainColour(which);
      return by === "chain" ? chainColour(atom.chainNumber) : band(atom.b).colour;
    };
    const styles = {
      cartoon: { cartoon: { colorfunc } }, trace: { cartoon: { colorfunc, style: "trace", thickness: .4 } },
      stick: { stick: { colorfunc, radius: .2 } },
    };
    model.setStyle({}, styles[shape]);
    // a ribbon needs a few residues
    const sizes = new Map();
    shown.residues.forEach(residue => sizes.set(residue.chain, (sizes.get(residue.chain) || 0) + 1));
    model.setStyle({ predicate: atom => sizes.get(atom.chainNumber) < 4 }, { stick: { colorfunc, radius: .2 } }, true);
  });
  viewer.render();
  legend(by);
}

function legend(by) {
  let lines = BANDS.map(each => [each.colour, each.text]);
  if (data.is_overlay) lines = shown.item.files.map((file, place) => [chainColour(place), file.label]);
  else if (by === "chain") {
    const chains = shown.item.sequence.split(":").slice(0, 2 * CHAINS.length);
    lines = chains.map((_, chain) => [chainColour(chain), `chain ${chain + 1}`]);
  }
  find("legend").replaceChildren(...lines.map(([colour, text]) => {
    const line = document.createElement("span");
    line.append(swatch(colour), text);
    return line;
  }));
}

// ---- files to keep

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function offer() {
  const { item, texts, matrix, residues } = shown;
  const stem = item.name.replace(/[^A-Za-z0-9._-]/g, "_");
  const buttons = item.files.map((file, place) => {
    const end = data.is_overlay ? `.${file.label}.${file.ending}` : `.${file.ending}`;
    const what = file.ending === "cif" ? "mmCIF" : "PDB";
    return [data.is_overlay ? `${what} of the ${file.label}` : what, () => save(stem + end, texts[place], "text/plain")];
  });
  if (matrix && !data.is_overlay) {
    buttons.push(["PAE as JSON", () => {
      const rows = residues.map((_, i) => residues.map((_, j) => matrix[i * residues.length + j] * STEP));
      const content = [{ predicted_aligned_error: rows, max_predicted_aligned_error: 31.75 }];
      save(`${stem}.pae.json`, JSON.stringify(content), "application/json");
    }]);
  }
  find("files").replaceChildren(...(buttons.length ? ["save "] : []), ...buttons.flatMap(([text, action]) => {
    const button = document.createElement("button");
    button.textContent = text;
    button.onclick = action;
    return [button, " "];
  }));
}

// ---- maps of pairs

const between = (one, other) => one && other ? Math.hypot(one.x - other.x, one.y - other.y, one.z - other.z) : NaN;

function shade(share) {
  const place = Math.min(1, Math.max(0, share)) * (SHADES.length - 1), low = Math.min(Math.floor(place), SHADES.length - 2);
  return SHADES[low].map((from, channel) => Math.round(from + (place - low) * (SHADES[low + 1][channel] - from)));
}

function rgb(hex) { return [1, 3, 5].map(place => parseInt(hex.slice(place, place + 2), 16)); }

// One pixel a pair, kept to be drawn below the cross.
function picture(colourOf) {
  const length = shown.residues.length, canvas = document.createElement("canvas");
  canvas.width = canvas.height = length;
  const pen = canvas.getContext("2d"), image = pen.createImageData(length, length);
  for (let i = 0; i < length; i++) {
    for (let j = 0; j < length; j++) image.data.set([...colourOf(i, j), 255], 4 * (i * length + j));
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

function drawMaps() {
  const { matrix, residues } = shown, length = residues.length, none = dark.matches ? [70, 70, 70] : [205, 205, 205];
  const table = Array.from({ length: 256 }, (_, value) => value === UNKNOWN ? none : shade(value * STEP / data.top));
  shown.matrixPicture = matrix && picture((i, j) => table[matrix[i * length + j]]);
  const ground = dark.matches ? [36, 39, 45] : [255, 255, 255], colours = [0, 1].map(chainColour).map(rgb);
  shown.contactPicture = picture((i, j) => {
    const which = data.is_overlay && i > j ? 1 : 0, one = residues[i], other = residues[j];
    if (one.chain === other.chain && Math.abs(i - j) < NEAR) return ground;
    return between(one.points[which], other.points[which]) < CONTACT ? colours[which] : ground;
  });
  find("of-pairs").hidden = !matrix;
  drawCrosses();
}

function drawCrosses() {
  for (const [id, source] of [["matrix", shown.matrixPicture], ["contacts", shown.contactPicture]]) {
    if (!source) continue;
    const canvas = find(id), size = SIDE * Math.ceil(devicePixelRatio), pen = canvas.getContext("2d");
    const cell = size / shown.residues.length;
    canvas.width = canvas.height = size;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, 0, 0, size, size);
    const line = (colour, width, ...ends) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(ends[0], ends[1]);
      pen.lineTo(ends[2], ends[3]);
      pen.stroke();
    };
    shown.residues.forEach((residue, place) => {
      if (place === 0 || residue.chain === shown.residues[place - 1].chain) return;
      line("#e69f00", 1.5, place * cell, 0, place * cell, size);
      line("#e69f00", 1.5, 0, place * cell, size, place * cell);
    });
    if (!pair) continue;
    const [y, x] = pair.map(place => (place + .5) * cell);
    line(FIRST, 2, 0, y, size, y);
    line(SECOND, 2, x, 0, x, size);
  }
}

// ---- a pair of residues, in the maps and in the structure

function point(next, stay = kept) {
  pair = next;
  kept = next !== null && stay;
  drawCrosses();
  tell();
  if (viewer) markModels();
}

function markModels() {
  viewer.removeAllShapes();
  viewer.removeAllLabels();
  const ends = pair ? pair.map(place => shown.residues[place]) : [];
  ends.forEach((residue, place) => {
    const at = residue.middles[0] || residue.middles[1], color = [FIRST, SECOND][place];
    if (!at) return;
    viewer.addSphere({ center: at, radius: 1.6, color });
    const text = { position: at, backgroundColor: color, fontColor: "white", fontSize: 13, inFront: true };
    viewer.addLabel(residue.label, text);
  });
  if (ends.length && ends[0] !== ends[1] && ends.every(residue => residue.middles[0])) {
    const [start, end] = ends.map(residue => residue.middles[0]);
    viewer.addCylinder({ start, end, radius: .25, color: "#888888", dashed: true });
  }
  viewer.render();
}

function touch(place) {
  if (place === undefined) return;
  const first = !pair || !kept || pair[0] !== pair[1];
  point(first ? [place, place] : [pair[0], place], true);
}

function tell() {
  if (!pair) {
    find("pair").textContent = data.hint;
    return;
  }
  const { residues, matrix } = shown, [i, j] = pair, [one, other] = [residues[i], residues[j]];
  const value = (a, b) => matrix[a * residues.length + b];
  const said = [`${one.label} and ${other.label}`];
  if (matrix && value(i, j) !== UNKNOWN) {
    const back = data.is_overlay ? "" : ` (${(value(j, i) * STEP).toFixed(1)} Å the other way round)`;
    said.push(`${data.quantity} ${(value(i, j) * STEP).toFixed(1)} Å${back}`);
  }
  const names = data.is_overlay ? shown.item.files.map(file => ` in the ${file.label}`) : [""];
  names.forEach((name, which) => {
    const apart = between(one.points[which], other.points[which]);
    if (!Number.isNaN(apart)) said.push(`C-betas ${apart.toFixed(1)} Å apart${name}`);
  });
  if (!data.is_overlay && one.plddt !== null) said.push(`pLDDT ${one.plddt.toFixed(0)} and ${other.plddt.toFixed(0)}`);
  find("pair").textContent = said.join("; ") + (kept ? ". Escape drops the pair." : ".");
}

function under(event) {
  const box = event.currentTarget.getBoundingClientRect(), length = shown.residues.length;
  const place = share => Math.min(length - 1, Math.max(0, Math.floor(share * length)));
  return [place((event.clientY - box.top) / box.height), place((event.clientX - box.left) / box.width)];
}

function listen(canvas) {
  let waiting = 0;
  canvas.onmousemove = event => {
    if (kept || !shown) return;
    const next = under(event);
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => kept || point(next));
  };
  canvas.onmouseleave = () => {
    cancelAnimationFrame(waiting);
    if (!kept && shown) point(null);
  };
  canvas.onclick = event => shown && point(under(event), true);
  canvas.onkeydown = event => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] };
    if (!shown || !moves[event.key]) return;
    event.preventDefault();
    const by = event.shiftKey ? 10 : 1, last = shown.residues.length - 1, from = pair || [0, 0];
    const next = from.map((place, axis) => Math.min(last, Math.max(0, place + by * moves[event.key][axis])));
    point(next, true);
  };
}

// ---- the page

function turn(event) {
  const turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
  if (turns[event.key]) viewer.rotate(...turns[event.key]);
  else if (event.key === "+" || event.key === "=") viewer.zoom(1.2);
  else if (event.key === "-") viewer.zoom(1 / 1.2);
  else return;
  event.preventDefault();
}

function begin() {
  document.title = find("title").textContent = data.title;
  find("about").textContent = data.about;
  find("matrix-text").textContent = data.matrix_text;
  find("contacts-text").textContent = data.contacts_text;
  find("top").textContent = data.top;
  find("scale").style.background = `linear-gradient(to right, ${SHADES.map(each => `rgb(${each})`).join()})`;
  find("scene").setAttribute("aria-label", "the structure; arrows turn it, plus and minus zoom");
  find("matrix").setAttribute("aria-label", `${data.quantity} of pairs of residues; arrows move the pair`);
  find("contacts").setAttribute("aria-label", "contacts of residues; arrows move the pair");
  find("by").hidden = data.is_overlay;
  try {
    viewer = $3Dmol.createViewer(find("scene"), { backgroundColor: dark.matches ? "#16181c" : "#ffffff" });
  } catch (error) {
    viewer = null;
  }
  if (viewer) find("scene").onkeydown = turn;
  else find("scene").textContent = "This browser draws no structures: WebGL is off. Files can be saved below.";
  for (const id of ["shape", "colour"]) find(id).onchange = () => viewer && shown && style();
  find("whole").onclick = () => viewer && shown && whole();
  dark.onchange = () => {
    if (viewer) viewer.setBackgroundColor(dark.matches ? "#16181c" : "#ffffff");
    if (viewer && shown) style();
    if (shown) drawMaps();
  };
  addEventListener("keydown", event => event.key === "Escape" && shown && point(null));
  listen(find("matrix"));
  listen(find("contacts"));
  list();
  if (data.items.length) return show(ranked()[0]);
}

begin();
