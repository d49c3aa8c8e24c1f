// What Gradio leaves without a name, without keys or without its place: a picture is called what stands above it, the
// handle between two pictures follows the arrow keys, and a link to a place in the page leads there.
() => {
  const nameOf = (element) => element.closest(".block")?.querySelector('[data-testid="block-label"]')?.innerText.trim();

  // The handle listens to a mouse alone: an arrow key drags it by a twentieth.
  const drag = (handle, key) => {
    const { left, top, width, height } = handle.getBoundingClientRect();
    const from = { clientX: left + width / 2, clientY: top + height / 2, view: window, bubbles: true };
    const by = (handle.closest(".block").clientWidth / 20) * (key === "ArrowLeft" ? -1 : 1);
    const to = { ...from, clientX: from.clientX + by };
    handle.dispatchEvent(new MouseEvent("mousedown", from));
    window.dispatchEvent(new MouseEvent("mousemove", to));
    window.dispatchEvent(new MouseEvent("mouseup", to));
  };

  const handleOf = (outer) => {
    const name = nameOf(outer);
    outer.setAttribute("aria-label", `${name}: how much of each is seen`);
    outer.setAttribute("aria-valuetext", "Arrow keys move it");
    if (outer.getAttribute("role") === "slider") return;
    for (const [key, value] of Object.entries({ role: "slider", tabindex: "0", "aria-valuenow": "50" })) outer.setAttribute(key, value);
    outer.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      drag(outer, event.key);
      const slot = outer.parentElement.getBoundingClientRect(), handle = outer.getBoundingClientRect();
      const share = (handle.left + handle.width / 2 - slot.left) / slot.width;
      outer.setAttribute("aria-valuenow", Math.round(100 * Math.min(1, Math.max(0, share))));
    });
  };

  const name = () => {
    for (const block of document.querySelectorAll(".block:has([data-testid=block-label])")) {
      const label = nameOf(block), images = [...block.querySelectorAll("img")], handle = block.querySelector(".outer");
      const texts = handle && images.length === 2 ? label.split(" | ") : images.map(() => label);
      images.forEach((image, i) => {
        if (!image.alt || "named" in image.dataset) {
          image.alt = texts[i] ?? label;
          image.dataset.named = "";
        }
      });
      if (handle) handleOf(handle);
    }
  };

  // Each radio of Gradio's may be a group of its own, in which the browser finds no next one.
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by || !event.target.matches?.(".block input[type=radio]") || event.target.closest(".viewer")) return;
    const radios = [...event.target.closest(".block").querySelectorAll("input[type=radio]:enabled")];
    const next = radios[(radios.indexOf(event.target) + by + radios.length) % radios.length];
    event.preventDefault();
    next.focus();
    next.click();
  });

  // Gradio's page has a <base>, against which "#place" would be another page.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    const place = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!place) return;
    event.preventDefault();
    place.scrollIntoView();
  });

  let waiting = 0;
  new MutationObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(name);
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
  name();
}
