"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const [depth, rows, columns] = page.shape;
  const area = rows * columns;
  const [OLD, GADOLINIUM, NEW] = [1, 2, 4]; // bits of the marks of a visit
  const [BRAIN, FORECAST] = [1, 2]; // bits of `inside`
  const COLOURS = page.colours;
  const byId = (id) => document.getElementById(id);
  const state = {
    slice: page.first, row: rows >> 1, column: columns >> 1, arm: page.arms[0].name,
  };
  /** What the controls say: a browser may have kept what they were set to before. */
  function readControls() {
    state.opacity = byId("opacity").value / 100;
    state.threshold = page.thresholds[byId("threshold").value];
    state.mirrored = byId("mirrored").checked;
    state.outlines = byId("outlines").checked;
    schedule();
  }

  /** Bytes of base64 text that zlib compressed. */
  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const percent = (p) => {
    if (p > 0 && p < page.values[1] * 0.999) return `< ${+(100 * page.values[1]).toPrecision(2)} %`;
    return `${+(100 * p).toPrecision(2)} %`;
  };

  /** What the page knows of a voxel of a map. */
  function chance(arm, index) {
    if (!(page.inside[index] & BRAIN)) return "outside the brain, not forecast";
    if (!(page.inside[index] & FORECAST)) return "outside the forecast slab, not forecast";
    const code = arm.heat[index];
    return code ? percent(page.values[code]) : `below ${percent(page.values[1])}`;
  }

  function millimetres(slice, row, column) {
    const voxel = [page.origin[0] - page.step[0] * column, page.origin[1] - page.step[1] * row, page.levels[slice]];
    return page.affine.map((line) => line[0] * voxel[0] + line[1] * voxel[1] + line[2] * voxel[2] + line[3]);
  }

  const images = page.visits.map((visit) => visit.images.map((source) => {
    const image = new Image();
    image.src = source;
    return image;
  }));
  const layer = document.createElement("canvas");
  [layer.width, layer.height] = [columns, rows];

  /** How opaque each code is: nothing below the threshold, all that the opacity allows from four times it on. */
  function opacities() {
    return page.values.map((p) => {
      if (p < state.threshold) return 0;
      return 255 * state.opacity * Math.min(1, 0.3 + 0.7 * Math.log(p / state.threshold) / Math.log(4));
    });
  }

  /** The coloured map of one slice. */
  function paintHeat(arm, slice) {
    const context = layer.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    const opaque = opacities();
    for (let place = 0; place < area; place++) {
      const code = arm.heat[slice * area + place];
      if (!opaque[code]) continue;
      pixels.data.set(page.lut[code], 4 * place);
      pixels.data[4 * place + 3] = opaque[code];
    }
    context.putImageData(pixels, 0, 0);
  }

  /** Strokes the border between pixels of a slice that are marked and pixels that are not. */
  function outline(context, across, down, marked, colour, width, dash = []) {
    context.beginPath();
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const here = marked(row * columns + column);
        if (column + 1 < columns && here !== marked(row * columns + column + 1)) {
          context.moveTo(across(column + 1), down(row));
          context.lineTo(across(column + 1), down(row + 1));
        }
        if (row + 1 < rows && here !== marked((row + 1) * columns + column)) {
          context.moveTo(across(column), down(row + 1));
          context.lineTo(across(column + 1), down(row + 1));
        }
      }
    }
    context.setLineDash(dash);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
    context.setLineDash([]);
  }

  function draw(canvas) {
    const visit = Number(canvas.dataset.visit);
    const name = canvas.dataset.arm === "shown" ? state.arm : canvas.dataset.arm;
    const arm = page.arms.find((one) => one.name === name);
    const unit = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * unit));
    const height = Math.max(1, Math.round(width * page.height_over_width));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const thin = Math.max(unit, width / 400);
    const context = canvas.getContext("2d");
    const across = (column) => (state.mirrored ? columns - column : column) * width / columns;
    const down = (row) => row * height / rows;
    const { slice } = state;
    const image = images[visit][slice];
    if (!image.complete) image.addEventListener("load", schedule, { once: true });

    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (state.mirrored) context.setTransform(-1, 0, 0, 1, width, 0);
    context.imageSmoothingEnabled = true;
    if (image.complete && image.naturalWidth) context.drawImage(image, 0, 0, width, height);
    if (arm) {
      paintHeat(arm, slice);
      context.imageSmoothingEnabled = false;
      context.drawImage(layer, 0, 0, width, height);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);

    if (state.outlines) {
      const { marks } = page.visits[visit];
      for (const [bit, colour] of [[OLD, COLOURS.t2], [GADOLINIUM, COLOURS.gd], [NEW, COLOURS.net2]]) {
        outline(context, across, down, (place) => (marks[slice * area + place] & bit) > 0, colour, thin);
      }
      if (arm) {
        const inside = (place) => (page.inside[slice * area + place] & FORECAST) > 0;
        if (page.fractions[slice] < 0.995) outline(context, across, down, inside, COLOURS.slab, thin, [4 * thin, 4 * thin]);
        outline(context, across, down, (place) => arm.agreed[slice * area + place] > 0, COLOURS.consensus, 2 * thin);
      }
    }

    const size = Math.max(11 * unit, width / 22);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const write = (text, x, y, colour, align) => {
      context.textAlign = align;
      context.lineWidth = 3 * unit;
      context.strokeStyle = "#000";
      context.strokeText(text, x, y);
      context.fillStyle = colour;
      context.fillText(text, x, y);
    };
    write(state.mirrored ? "L" : "R", 5 * unit, height / 2, "#fff", "left");
    write(state.mirrored ? "R" : "L", width - 5 * unit, height / 2, "#fff", "right");
    write("A", width / 2, size * 0.7, "#fff", "center");
    write("P", width / 2, height - size * 0.7, "#fff", "center");
    if (arm && canvas.dataset.arm === "shown") {
      for (const site of arm.sites) {
        if (site.slice !== slice) continue;
        const x = across(site.column + 0.5);
        const y = down(site.row + 0.5);
        context.beginPath();
        context.arc(x, y, page.ring * width / columns, 0, 2 * Math.PI);
        context.lineWidth = 1.5 * unit;
        context.strokeStyle = COLOURS.site;
        context.stroke();
        write(String(site.rank), x + page.ring * width / columns + 3 * unit, y, COLOURS.site, "left");
      }
    }
    const [x, y] = [across(state.column + 0.5), down(state.row + 0.5)];
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * unit * dx, y + 4 * unit * dy);
      context.lineTo(x + 11 * unit * dx, y + 11 * unit * dy);
    }
    context.lineWidth = 1.5 * unit;
    context.strokeStyle = COLOURS.cursor;
    context.stroke();
  }

  function describe() {
    const { slice, row, column } = state;
    const index = slice * area + row * columns + column;
    const [x, y, z] = millimetres(slice, row, column).map((number) => number.toFixed(0).replace("-", "\u2212"));
    const arm = page.arms.find((one) => one.name === state.arm);
    byId("readout").textContent = `Chance in this voxel: ${chance(arm, index)}; `
      + `slice ${page.numbers[slice]}; x ${x}, y ${y}, z ${z} mm`;
    for (const output of document.querySelectorAll("[data-chance]")) {
      output.textContent = chance(page.arms.find((one) => one.name === output.dataset.chance), index);
    }
    const part = page.fractions[slice] < 0.995 ? `, ${Math.round(100 * page.fractions[slice])} % of its brain forecast` : "";
    byId("slice-value").textContent = `${page.numbers[slice]} (${slice + 1} of ${depth} from below)${part}`;
    byId("slice").setAttribute("aria-valuetext", byId("slice-value").textContent);
    byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    byId("threshold-value").textContent = percent(state.threshold);
    byId("threshold").setAttribute("aria-valuetext", percent(state.threshold));
    byId("orientation-value").textContent = state.mirrored
      ? "Neurological: the patient's left (L) is on the left of the image."
      : "Radiological: the patient's left (L) is on the right of the image.";
  }

  let waiting = false;
  function schedule() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      describe();
      document.querySelectorAll("canvas").forEach(draw);
    });
  }

  function move(slice, row, column) {
    const clip = (value, length) => Math.min(Math.max(value, 0), length - 1);
    [state.slice, state.row, state.column] = [clip(slice, depth), clip(row, rows), clip(column, columns)];
    byId("slice").value = state.slice;
    schedule();
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const right = state.mirrored ? -1 : 1;
    const steps = {
      PageUp: [1, 0, 0], PageDown: [-1, 0, 0], Home: [-depth, 0, 0], End: [depth, 0, 0],
      ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, -right], ArrowRight: [0, 0, right],
    };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    move(state.slice + step[0], state.row + step[1], state.column + step[2]);
  }

  function onPoint(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * columns);
    const row = Math.floor((event.clientY - box.top) / box.height * rows);
    move(state.slice, row, state.mirrored ? columns - 1 - column : column);
  }

  function onWheel(event) {
    if (document.activeElement !== event.currentTarget) return; // else the page scrolls
    event.preventDefault();
    move(state.slice - Math.sign(event.deltaY), state.row, state.column);
  }

  function show(name) {
    state.arm = name;
    for (const part of document.querySelectorAll("[data-of-arm]")) part.hidden = part.dataset.ofArm !== name;
    for (const line of document.querySelectorAll("tr[data-line]")) line.classList.toggle("shown", line.dataset.line === name);
    schedule();
  }

  async function start() {
    page.inside = await inflate(page.inside);
    for (const visit of page.visits) visit.marks = await inflate(visit.marks);
    for (const arm of page.arms) [arm.heat, arm.agreed] = [await inflate(arm.heat), await inflate(arm.agreed)];
    for (const canvas of document.querySelectorAll("canvas")) {
      canvas.addEventListener("keydown", onKey);
      canvas.addEventListener("pointerdown", onPoint);
      canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && onPoint(event));
      canvas.addEventListener("wheel", onWheel, { passive: false });
    }
    byId("slice").addEventListener("input", (event) => move(Number(event.target.value), state.row, state.column));
    for (const name of ["opacity", "threshold", "mirrored", "outlines"]) byId(name).addEventListener("input", readControls);
    for (const choice of document.querySelectorAll("input[name=arm]")) choice.addEventListener("change", () => show(choice.value));
    for (const button of document.querySelectorAll("button[data-slice]")) {
      button.addEventListener("click", () => {
        const { slice, row, column } = button.dataset;
        move(Number(slice), Number(row), Number(column));
        const canvas = document.querySelector("canvas[data-arm=shown]");
        canvas.focus({ preventScroll: true });
        canvas.scrollIntoView({ block: "center" });
      });
    }
    window.addEventListener("resize", schedule);
    const site = page.arms[0].sites.find((one) => one.slice !== null);
    if (site) move(site.slice, site.row, site.column);
    else move(state.slice, state.row, state.column);
    const chosen = document.querySelector("input[name=arm]:checked");
    show(chosen ? chosen.value : state.arm);
    readControls();
    document.body.dataset.ready = "true";
  }

  start().catch((error) => {
    byId("readout").textContent = `The images cannot be shown: this browser is too old (${error.message}). The numbers below are complete.`;
  });
})();
