"""What a visitor does on the pages of structures, as the inside of an async function; `seen` is what it found."""

VISIT = """
const seen = { saved: [] };
const pause = () => new Promise(done => setTimeout(done, 60));
// Pixels of the drawing that are not ground: how many, and of which hue.
async function drawn() {
  const image = new Image();
  image.src = viewer.pngURI();
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const found = { all: 0, blue: 0, orange: 0, magenta: 0 };
  const pixels = pen.getImageData(0, 0, image.width, image.height).data;
  const ground = pixels.slice(0, 3);
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b] = pixels.slice(i, i + 3);
    if (Math.abs(r - ground[0]) + Math.abs(g - ground[1]) + Math.abs(b - ground[2]) < 60) continue;
    found.all += 1;
    found.blue += b > 1.5 * r && b > 1.2 * g;
    found.orange += r > 1.25 * g && r > 1.6 * b;
    found.magenta += r > 2.5 * g && b > 2.5 * g;
  }
  return found;
}
function at(canvas, kind, i, j) {
  const box = canvas.getBoundingClientRect(), length = shown.residues.length;
  const [x, y] = [j, i].map(place => (place + .5) / length);
  const where = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
  canvas.dispatchEvent(new MouseEvent(kind, { ...where, bubbles: true }));
}
const press = (element, key, shiftKey) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true, cancelable: true }));
const contacts = () => {
  const canvas = shown.contactPicture, length = canvas.width, ground = dark.matches ? 36 : 255;
  const pixels = canvas.getContext("2d").getImageData(0, 0, length, length).data, found = [];
  for (let i = 0; i < length; i++) {
    for (let j = 0; j < length; j++) if (pixels[4 * (i * length + j)] !== ground) found.push([i, j]);
  }
  return found;
};
const rows = () => [...find("rows").children].map(row => [...row.children].map(cell => cell.textContent));
while (!shown) await pause();
"""

VISIT_FOLD = """
    seen.title = document.title;
    seen.rows = rows();
    seen.name = find("name").textContent;
    seen.one = await drawn();
    press(find("rows").children[0].querySelector("button"), "ArrowDown");
    while (shown.item.name === "one") await pause();
    seen.next = find("name").textContent;
    seen.current = find("rows").children[1].getAttribute("aria-current");
    seen.focus = document.activeElement.textContent;
    seen.complex = await drawn();
    find("colour").value = "chain";
    find("colour").onchange();
    seen.chains = [await drawn(), find("legend").textContent];
    find("colour").value = "confidence";
    find("rows").children[2].click();
    while (shown.item.name !== "half") await pause();
    seen.half = await drawn();
    seen.legend = find("legend").textContent;
    seen.contacts = contacts();
    const shades = find("matrix").getContext("2d"), cell = find("matrix").width / shown.residues.length;
    seen.shades = [[3, 40], [40, 3], [10, 60]].map(([i, j]) =>
      [...shades.getImageData(Math.floor((j + .5) * cell), Math.floor((i + .5) * cell), 1, 1).data]);
    at(find("matrix"), "mousemove", 3, 40);
    await pause();
    seen.hovered = [find("pair").textContent, (await drawn()).magenta];
    at(find("matrix"), "mouseleave", 0, 0);
    seen.left = [find("pair").textContent, (await drawn()).magenta];
    at(find("matrix"), "click", 3, 40);
    at(find("matrix"), "mousemove", 9, 9);
    await pause();
    seen.clicked = [find("pair").textContent, (await drawn()).magenta];
    press(find("contacts"), "ArrowRight", true);
    press(find("contacts"), "ArrowUp", false);
    seen.moved = pair;
    press(document.body, "Escape");
    seen.dropped = pair;
    for (const place of [7, 20]) {
      const atom = shown.models[0].selectedAtoms({ resi: place + 1, atom: "CA" })[0];
      atom.callback(atom);
    }
    seen.touched = pair;
    const view = viewer.getView().slice();
    press(find("scene"), "ArrowLeft");
    seen.turned = viewer.getView().some((value, place) => Math.abs(value - view[place]) > 1e-3);
    const kept = URL.createObjectURL;
    const texts = [];
    URL.createObjectURL = blob => { texts.push(blob.text()); return kept(blob); };
    HTMLAnchorElement.prototype.click = function () { seen.saved.push([this.download]); };
    for (const button of find("files").querySelectorAll("button")) button.click();
    (await Promise.all(texts)).forEach((text, place) => seen.saved[place].push(text));
    find("head").children[0].firstChild.click();
    seen.sorted = rows().map(row => row[0]);
    seen.reachable = [...document.querySelectorAll("button, select, [tabindex='0'], summary")].length;
"""

VISIT_COMPARE = """
    seen.drawn = await drawn();
    seen.contacts = contacts();
    seen.legend = find("legend").textContent;
    at(find("matrix"), "click", 2, 30);
    seen.pair = find("pair").textContent;
    seen.ground = getComputedStyle(document.body).backgroundColor;
"""
