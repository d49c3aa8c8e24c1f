// The volume viewer: three linked planes by NiiVue. `element` holds the markup of mediffuse/ui/viewer.py;
// show(layers) gets [{role, url, name, title, unit, window: [min, max], presets: [[text, min, max]]}], role being
// input, made, truth, error or spread.
(element) => {
  const find = (selector) => element.querySelector(selector);
  const [canvas, base, over, opacity, preset, readout] = [
    "canvas", ".base", ".over", ".opacity", ".preset", ".readout",
  ].map(find);
  const OVERLAYS = ["error", "spread"];
  const viewer = new niivue.Niivue({
    isRadiologicalConvention: true,
    isOrientationTextVisible: true,
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 0.75, 0.2, 0.8],
    crosshairWidth: 0.6,
    dragAndDropEnabled: false,
    loadingText: "",
    logLevel: "error",
    multiplanarShowRender: 0,
  });
  let layers = [];
  let shown = [];
  let turn = 0;

  const fill = (select, options) => {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (options.some(([value]) => value === before)) select.value = before;
  };

  const draw = async () => {
    const mine = ++turn;
    const below = layers.find((l) => l.role === base.value);
    const above = layers.find((l) => l.role === over.value && l !== below);
    if (!below) return;
    fill(preset, [["", "As given"], ...below.presets.map(([text, low, high]) => [`${low},${high}`, text])]);
    const place = viewer.volumes.length ? [...viewer.scene.crosshairPos] : null;
    const load = (layer, colormap, range, more = {}) => ({
      url: layer.url, name: layer.name, colormap, cal_min: range[0], cal_max: range[1], trustCalMinMax: false, ...more,
    });
    const range = preset.value ? preset.value.split(",").map(Number) : below.window;
    const wanted = [load(below, "gray", range)];
    if (above) {
      const [low, high] = above.window;
      wanted.push(above.role === "error"
        ? load(above, "redyell", [high / 10, high], { colormapNegative: "bluegrn", cal_minNeg: -high, cal_maxNeg: -high / 10 })
        : load(above, above.role === "spread" ? "inferno" : "gray", [low, high]));
    }
    await viewer.loadVolumes(wanted);
    if (mine !== turn) return;
    shown = above ? [below, above] : [below];
    if (above) viewer.setOpacity(1, Number(opacity.value));
    if (place) {
      viewer.scene.crosshairPos = place;
      viewer.drawScene();
    }
    viewer.createOnLocationChange();
    element.dataset.shown = shown.map((l) => l.role).join("+");
  };

  viewer.onLocationChange = (where) => {
    const mm = [...where.mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ");
    const values = where.values.map((v, i) => (shown[i] ? `${shown[i].title.replace(/ [±0].*/, "")} ${v.value.toFixed(0)} ${shown[i].unit}` : ""));
    readout.textContent = `RAS ${mm} mm: ${values.filter(Boolean).join("; ")}`;
  };
  const ready = viewer.attachToCanvas(canvas).then(() => {
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.setSliceMM(true);
  });
  const failed = (error) => {
    readout.textContent = `The viewer cannot draw here (${error.message}). The files below open in any viewer.`;
  };
  for (const control of [base, over]) control.addEventListener("change", () => draw().catch(failed));
  preset.addEventListener("change", () => {
    const below = layers.find((l) => l.role === base.value);
    if (!below || !viewer.volumes.length) return;
    const [low, high] = preset.value ? preset.value.split(",").map(Number) : below.window;
    Object.assign(viewer.volumes[0], { cal_min: low, cal_max: high });
    viewer.updateGLVolume();
  });
  opacity.addEventListener("input", () => {
    if (viewer.volumes.length > 1) viewer.setOpacity(1, Number(opacity.value));
  });

  return (given) => {
    layers = given;
    const option = (layer) => [layer.role, layer.title];
    const former = base.value;
    fill(base, layers.filter((l) => !OVERLAYS.includes(l.role)).map(option));
    if (layers.some((l) => l.role === "made") && former === "input") base.value = "made";
    fill(over, [["", "None"], ...layers.map(option)]);
    find(".viewer").hidden = layers.length === 0;
    return layers.length ? ready.then(draw).catch(failed) : undefined;
  };
}
