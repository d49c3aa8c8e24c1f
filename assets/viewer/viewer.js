// The volume viewer: layers side by side in three planes, with one crosshair, slice, zoom and window for all.
//
// `element` holds the markup of mediffuse/ui/viewer.py; `palettes` are 256 RGB colours by role, of maps. The function
// that is returned shows {layers, axes, affine, scores}:
//   layers: [{role, title, modality, unit, window: [black, white], limits, presets: [[text, black, white]], url}]. A url
//     leads to a NIfTI, all on one grid; limits are the values of an MRI that are shown as 0 and 255, or null.
//   axes: for Right, Anterior, Superior the file's axis and 1 or -1; affine: from indices on these to mm.
//   scores: [[axial slice, PSNR, SSIM]].
(element, palettes) => {
  const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] }; // across, up, through
  const ENDS = [["R", "L"], ["A", "P"], ["S", "I"]]; // as a plane is seen, an axis ends on the left
  const GREY = Array.from({ length: 256 }, (_, grey) => [grey, grey, grey]);
  const ARROWS = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
  const find = (selector) => element.querySelector(selector);
  const views = find(".views"), slider = find(".slice"), curve = find(".curve"), zooming = find(".zoom");
  const slate = document.createElement("canvas");
  const hidden = new Set(["error", "spread"]); // roles that are there, and not to be seen
  let layers = [], shape = [1, 1, 1], spacing = [1, 1, 1], affine = [], scores = [];
  let place = [0, 0, 0], hover = null, zoom = 1, centre = [0.5, 0.5, 0.5], windows = {};
  let turn = 0, frame = 0, read = new Map();

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const make = (tag, fields = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), fields);
    made.append(...children);
    return made;
  };
  const isMap = (layer) => layer.role in palettes;
  const isMade = (layer) => layer.role !== "input" && layer.role !== "truth";
  const windowOf = (layer) => (isMap(layer) ? layer.window : windows[layer.modality]);

  // Reading.

  const voxelsOf = async (url) => {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    const bytes = await new Response(answer.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    const header = new DataView(bytes);
    const size = [42, 44, 46].map((at) => header.getInt16(at, true));
    const Kind = { 4: Int16Array, 16: Float32Array }[header.getInt16(70, true)];
    return { size, voxels: new Kind(bytes, header.getFloat32(108, true), size[0] * size[1] * size[2]) };
  };

  // `layer` with its voxels, and how to step through them along Right, Anterior, Superior.
  const opened = async (layer, axes) => {
    if (!read.has(layer.url)) read.set(layer.url, voxelsOf(layer.url));
    const { size, voxels } = await read.get(layer.url);
    const strides = [1, size[0], size[0] * size[1]];
    const first = axes.reduce((sum, [axis, sign]) => sum + (sign < 0 ? (size[axis] - 1) * strides[axis] : 0), 0);
    const steps = axes.map(([axis, sign]) => sign * strides[axis]);
    return { ...layer, voxels, first, steps, shape: axes.map(([axis]) => size[axis]) };
  };

  // The value at an index, an MRI's on the scale from 0 to 255.
  const valueAt = (layer, index) => {
    const value = layer.voxels[index.reduce((sum, i, axis) => sum + i * layer.steps[axis], layer.first)];
    if (!layer.limits) return value;
    const [black, white] = layer.limits;
    return 255 * clamp((value - black) / (white - black), 0, 1);
  };

  // Drawing. A canvas shows a part of its plane: 1 / zoom of each axis, from `corner` on, counted from the left or top.

  const corner = (axis) => clamp(1 - centre[axis] - 0.5 / zoom, 0, 1 - 1 / zoom);
  const shareOf = (axis) => (1 - (place[axis] + 0.5) / shape[axis] - corner(axis)) * zoom;
  const indexAt = (axis, share) => clamp(Math.floor((1 - corner(axis) - share / zoom) * shape[axis]), 0, shape[axis] - 1);

  const paint = (layer, canvas) => {
    const [across, up, through] = PLANES[canvas.dataset.plane];
    const [columns, rows] = [shape[across], shape[up]];
    let [low, high] = windowOf(layer);
    if (layer.limits) [low, high] = [low, high].map((v) => layer.limits[0] + (v / 255) * (layer.limits[1] - layer.limits[0]));
    const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    const step = layer.steps[across], scale = 255 / (high - low);
    for (let row = 0, pixel = 0; row < rows; row++) {
      let at = layer.first + place[through] * layer.steps[through] + (rows - 1 - row) * layer.steps[up] + (columns - 1) * step;
      for (let column = 0; column < columns; column++, at -= step) {
        pixels[pixel++] = layer.colours[clamp(Math.round((layer.voxels[at] - low) * scale), 0, 255)];
      }
    }
    Object.assign(slate, { width: columns, height: rows }).getContext("2d").putImageData(image, 0, 0);
    const width = (canvas.width = Math.round(canvas.clientWidth * devicePixelRatio));
    const height = (canvas.height = Math.round(canvas.clientHeight * devicePixelRatio));
    const context = canvas.getContext("2d");
    const part = [corner(across) * columns, corner(up) * rows, columns / zoom, rows / zoom];
    context.drawImage(slate, ...part, 0, 0, width, height);
    mark(context, layer, across, up);
  };

  const mark = (context, layer, across, up) => {
    const { width, height } = context.canvas, pixel = devicePixelRatio;
    const write = (text, x, y, align) => {
      Object.assign(context, { textAlign: align, lineWidth: 3 * pixel, strokeStyle: "#000c", fillStyle: "#ffc14d" });
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    // In a thin plane, the word stands at the top and the letters at the bottom.
    const [left, right] = ENDS[across], isThin = height < 90 * pixel;
    context.font = `600 ${(isThin ? Math.min(12, width / pixel / 8) : 12) * pixel}px system-ui, sans-serif`;
    const middle = isThin ? height - 5 * pixel : height / 2 + 4 * pixel;
    write(left, 5 * pixel, middle, "left");
    write(right, width - 5 * pixel, middle, "right");
    if (isMade(layer)) write("SYNTHETIC", 5 * pixel, isThin ? 14 * pixel : height - 6 * pixel, "left");
    if (!find(".cross").checked) return;
    const x = shareOf(across) * width, y = shareOf(up) * height, gap = 9 * pixel;
    Object.assign(context, { strokeStyle: "#f59e0b", lineWidth: pixel });
    context.beginPath();
    for (const [x1, y1, x2, y2] of [[x, 0, x, y - gap], [x, y + gap, x, height], [0, y, x - gap, y], [x + gap, y, width, y]]) {
      context.moveTo(x1, y1);
      context.lineTo(x2, y2);
    }
    context.stroke();
  };

  const tell = () => {
    const at = hover ?? place;
    for (const layer of layers) layer.value.textContent = `${valueAt(layer, at).toFixed(0)} ${layer.unit}`;
    const mm = affine.slice(0, 3).map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);
    const words = mm.map((v, axis) => `${ENDS[axis][v < 0 ? 1 : 0]} ${Math.abs(v).toFixed(1)}`);
    find(".readout").textContent = `${hover ? "Under the pointer" : "At the crosshair"}: ${words.join(", ")} mm; slice ${at[2]}.`;
  };

  const draw = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      for (const layer of layers) {
        layer.figure.hidden = hidden.has(layer.role);
        if (layer.figure.hidden || !layer.figure.clientWidth) continue;
        layer.figure.classList.toggle("narrow", layer.figure.clientWidth < 230);
        for (const canvas of layer.figure.querySelectorAll("canvas")) paint(layer, canvas);
      }
      element.dataset.shown = layers.filter((l) => !hidden.has(l.role)).map((l) => l.role).join("+");
      slider.value = place[2];
      const here = scores.find(([slice]) => slice === place[2]);
      find(".here").textContent = `${place[2]}${here ? `: PSNR ${here[1].toFixed(1)} dB, SSIM ${here[2].toFixed(2)}` : ""}`;
      curve.querySelector("line")?.setAttribute("transform", `translate(${(100 * place[2]) / Math.max(1, shape[2] - 1)} 0)`);
      tell();
    });
  };

  const drawCurve = () => {
    curve.toggleAttribute("hidden", !scores.length);
    find(".range").textContent = "";
    if (!scores.length) return;
    const psnrs = scores.map(([, psnr]) => psnr), low = Math.min(...psnrs), high = Math.max(...psnrs);
    const points = scores.map(([slice, psnr]) => {
      return `${(100 * slice) / Math.max(1, shape[2] - 1)},${37 - (34 * (psnr - low)) / (high - low || 1)}`;
    });
    curve.querySelector("polyline").setAttribute("points", points.join(" "));
    const text = `PSNR by slice, ${low.toFixed(1)} to ${high.toFixed(1)} dB`;
    curve.setAttribute("aria-label", text);
    find(".range").textContent = text;
  };

  // Windows. A select lists what is usual; a drag makes a window of its own, which the first option names.

  const setWindow = (modality, [black, white]) => {
    windows[modality] = [black, white];
    const select = find(`select.${modality}`), value = `${black},${white}`;
    select.options[0].text = `Width ${(white - black).toFixed(0)}, level ${((black + white) / 2).toFixed(0)}`;
    select.value = [...select.options].some((option) => option.value === value) ? value : "";
  };

  const fillWindows = () => {
    for (const modality of ["CT", "MR"]) {
      const select = find(`select.${modality}`), mine = layers.filter((l) => l.modality === modality && !isMap(l));
      select.parentElement.hidden = !mine.length;
      if (!mine.length) continue;
      const usual = mine[0].presets.map(([text, black, white]) => new Option(text, `${black},${white}`));
      select.replaceChildren(new Option("", ""), ...usual);
      setWindow(modality, windows[modality] ?? mine[0].window);
    }
  };

  // What a visitor does.

  const zoomTo = (value) => {
    zoom = clamp(value, Number(zooming.min), Number(zooming.max));
    zooming.value = zoom;
    centre = place.map((i, axis) => (i + 0.5) / shape[axis]);
    draw();
  };

  const move = (axis, by) => {
    place[axis] = clamp(place[axis] + by, 0, shape[axis] - 1);
    draw();
  };

  const under = (event, canvas) => {
    const [across, up] = PLANES[canvas.dataset.plane], index = [...place];
    index[across] = indexAt(across, event.offsetX / canvas.clientWidth);
    index[up] = indexAt(up, event.offsetY / canvas.clientHeight);
    return index;
  };

  const dragged = (event, canvas, layer) => {
    const how = event.buttons === 2 ? "window" : find(".drag input:checked").value;
    const [across, up] = PLANES[canvas.dataset.plane];
    if (how === "crosshair") {
      place = under(event, canvas);
    } else if (how === "move") {
      centre[across] = clamp(centre[across] + event.movementX / canvas.clientWidth / zoom, 0.5 / zoom, 1 - 0.5 / zoom);
      centre[up] = clamp(centre[up] + event.movementY / canvas.clientHeight / zoom, 0.5 / zoom, 1 - 0.5 / zoom);
    } else if (!isMap(layer)) {
      const [black, white] = windows[layer.modality], speed = Math.max(white - black, 20) / 200;
      const width = Math.max(2, white - black + event.movementX * speed), level = (black + white) / 2 - event.movementY * speed;
      setWindow(layer.modality, [level - width / 2, level + width / 2]);
    }
    draw();
  };

  const listen = (layer, canvas) => {
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      layer.figure.querySelector("[tabindex]").focus({ preventScroll: true });
      dragged(event, canvas, layer);
    });
    canvas.addEventListener("pointermove", (event) => {
      hover = under(event, canvas);
      event.buttons ? dragged(event, canvas, layer) : tell();
    });
    canvas.addEventListener("pointerleave", () => { hover = null; tell(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    let rolled = 0;
    canvas.addEventListener("wheel", (event) => {
      if (!layer.figure.matches(":focus-within")) return; // the page scrolls, until a picture is clicked
      event.preventDefault();
      rolled -= event.deltaY;
      if (Math.abs(rolled) < 40) return;
      move(PLANES[canvas.dataset.plane][2], Math.sign(rolled));
      rolled = 0;
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in ARROWS) move(...ARROWS[event.key]);
      else if (event.key === "+" || event.key === "-") zoomTo(event.key === "+" ? zoom * 1.25 : zoom / 1.25);
      else return;
      event.preventDefault();
    });
  };

  // The figure of a layer, with a large axial plane, which takes the keys, and two thin ones.
  const addFigure = (layer) => {
    const side = (axis) => shape[axis] * spacing[axis];
    const canvases = Object.entries(PLANES).map(([plane, [across, up]]) => {
      const canvas = make("canvas");
      canvas.dataset.plane = plane;
      canvas.setAttribute("role", plane === "axial" ? "application" : "img");
      canvas.setAttribute("aria-label", `${layer.title}, ${plane} plane`);
      canvas.style.aspectRatio = `${side(across)} / ${side(up)}`;
      canvas.style.flexGrow = side(across);
      return canvas;
    });
    canvases[0].tabIndex = 0;
    canvases[0].setAttribute("aria-describedby", find(".help").id);
    layer.value = make("span", { className: "value" });
    layer.colours = new Uint32Array((palettes[layer.role] ?? GREY).map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r));
    const caption = make("figcaption", {}, make("span", { textContent: layer.title }), layer.value);
    const className = isMade(layer) ? "made" : "";
    layer.figure = make("figure", { className }, caption, canvases[0], make("div", { className: "thin" }, canvases[1], canvases[2]));
    if (isMap(layer)) {
      const [low, high] = layer.window, stops = palettes[layer.role].filter((_, i) => i % 15 === 0).map((c) => `rgb(${c})`);
      const bar = make("i");
      bar.style.background = `linear-gradient(to right, ${stops})`;
      layer.figure.append(make("div", { className: "scale" }, `${low.toFixed(0)}`, bar, `${high.toFixed(0)} ${layer.unit}`));
    }
    views.append(layer.figure);
    for (const canvas of canvases) listen(layer, canvas);
  };

  const addChoice = (layer) => {
    const box = make("input", { type: "checkbox", checked: !hidden.has(layer.role), value: layer.role });
    box.addEventListener("change", () => {
      box.checked ? hidden.delete(layer.role) : hidden.add(layer.role);
      draw();
    });
    find(".choices").append(make("label", {}, box, layer.title));
  };

  for (const select of element.querySelectorAll("select")) {
    select.addEventListener("change", () => {
      if (select.value) setWindow(select.name, select.value.split(",").map(Number));
      draw();
    });
  }
  find(".cross").addEventListener("change", draw);
  const whole = find(".whole");
  whole.hidden = !document.fullscreenEnabled;
  whole.addEventListener("click", () => {
    document.fullscreenElement ? document.exitFullscreen() : find(".viewer").requestFullscreen();
  });
  zooming.addEventListener("input", () => zoomTo(Number(zooming.value)));
  slider.addEventListener("input", () => move(2, Number(slider.value) - place[2]));
  curve.addEventListener("click", (event) => {
    const { left, width } = curve.getBoundingClientRect();
    move(2, Math.round(((event.clientX - left) / width) * (shape[2] - 1)) - place[2]);
  });
  find(".drag").addEventListener("change", () => { views.dataset.drag = find(".drag input:checked").value; });
  new ResizeObserver(draw).observe(views);

  const showNow = async (given) => {
    const mine = ++turn;
    const wanted = new Set(given.layers.map((layer) => layer.url));
    read = new Map([...read].filter(([url]) => wanted.has(url)));
    const before = layers.find((layer) => layer.role === "input")?.url;
    const found = await Promise.all(given.layers.map((layer) => opened(layer, given.axes)));
    if (mine !== turn) return;
    layers = found;
    find(".viewer").hidden = !layers.length;
    views.replaceChildren();
    find(".choices").replaceChildren();
    scores = given.scores ?? [];
    if (!layers.length) {
      element.dataset.shown = "";
      return;
    }
    shape = layers[0].shape;
    affine = given.affine;
    spacing = [0, 1, 2].map((axis) => Math.hypot(...affine.slice(0, 3).map((row) => row[axis])));
    if (layers[0].url !== before) {
      [windows, zoom, zooming.value] = [{}, 1, 1];
      place = shape.map((n) => n >> 1);
    }
    slider.max = shape[2] - 1;
    for (const layer of layers) {
      addFigure(layer);
      addChoice(layer);
    }
    fillWindows();
    drawCurve();
    draw();
  };

  return (given) => showNow(given).catch((error) => {
    read.clear();
    find(".viewer").hidden = false;
    find(".readout").textContent = `The viewer cannot draw here (${error.message}). The files below open in any viewer.`;
  });
}
