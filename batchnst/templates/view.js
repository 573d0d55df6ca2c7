// Views into pictures that are enlarged: how far they are scrolled, and moving them by mouse.

const ZOOMS = [["Whole", 0], ["100 %", 1], ["200 %", 2]];
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

// The part of the way that a view is scrolled, across and down.
function position({ scrollLeft, scrollTop, scrollWidth, scrollHeight, clientWidth, clientHeight }) {
  const part = (value, most) => (most > 0 ? value / most : 0.5);
  return [part(scrollLeft, scrollWidth - clientWidth), part(scrollTop, scrollHeight - clientHeight)];
}

function setPosition(view, [across, down]) {
  const left = across * (view.scrollWidth - view.clientWidth);
  const top = down * (view.scrollHeight - view.clientHeight);
  if (Math.abs(view.scrollLeft - left) > 1) view.scrollLeft = left; // less is rounding, and would go to and fro
  if (Math.abs(view.scrollTop - top) > 1) view.scrollTop = top;
}

// Drag to move inside the picture of a view, or to do what `drag` does with each event if that returns true; a click
// without a move calls `zoomAt` with the place in the picture.
function addDrag(view, zoomAt, drag = () => false) {
  let from = null;
  view.addEventListener("pointerdown", (event) => {
    if (event.button || event.pointerType === "touch" ) return;
    from = { x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop, moved: false };
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [right, down] = [event.clientX - from.x, event.clientY - from.y];
    from.moved ||= Math.hypot(right, down) > 4;
    if (!from.moved || drag(event)) return;
    view.scrollTo({ left: from.left - right, top: from.top - down, behavior: "instant" });
  });
  view.addEventListener("pointerup", () => {
    view.dataset.moved = from?.moved ?? false;
    from = null;
  });
  view.addEventListener("click", (event) => {
    if (view.dataset.moved === "true" || !view.querySelector("img")) return;
    const box = view.querySelector("img").getBoundingClientRect();
    const part = (value, start, length) => clamp((value - start) / length, 0, 1);
    zoomAt([part(event.clientX, box.left, box.width), part(event.clientY, box.top, box.height)]);
  });
}

// Move inside the picture of a view by an arrow key.
function pan(view, key) {
  const [down, right] = ARROWS[key];
  view.scrollBy({ left: (right * view.clientWidth) / 4, top: (down * view.clientHeight) / 4, behavior: "instant" });
}
