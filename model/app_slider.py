"""The page's pictures over one another, with a divider between each two that can be dragged."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from model.pictures import Figure

STYLE = """
.stage { position: relative; margin: auto; touch-action: pan-y; cursor: ew-resize; user-select: none;
  overflow: hidden; border-radius: var(--radius-lg); background: var(--background-fill-secondary); }
.stage img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; pointer-events: none; }
.stage .divider { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 4px #000a; pointer-events: none; }
.stage .divider::after { content: "↔"; position: absolute; top: 50%; left: 50%; width: 30px;
  height: 30px; transform: translate(-50%, -50%); border-radius: 50%; background: #fff; color: #222;
  font: 18px/28px sans-serif; text-align: center; box-shadow: 0 1px 5px #0008; }
.stage .name { position: absolute; top: 8px; transform: translateX(-50%); padding: 2px 10px;
  border-radius: 12px; background: #000a; color: #fff; font-size: 13px; white-space: nowrap;
  pointer-events: none; }
.stage input { position: absolute; left: 0; bottom: 0; width: 100%; opacity: 0; pointer-events: none; }
.stage input:focus-visible + .divider { outline: 3px solid var(--color-accent); }
.nothing { display: grid; place-items: center; min-height: 320px; border-radius: var(--radius-lg);
  color: var(--body-text-color-subdued); background: var(--background-fill-secondary); text-align: center; }
"""

# The dividers are range inputs, so that the keyboard moves them too; a press on the stage takes the nearest.
SCRIPT = """
const place = (stage) => {
  const inputs = [...stage.querySelectorAll('input')];
  const edges = [0, ...inputs.map((input) => Number(input.value)), 100];
  stage.querySelectorAll('img').forEach((image, i) => {
    image.style.clipPath = `inset(0 ${100 - edges[i + 1]}% 0 ${edges[i]}%)`;
  });
  stage.querySelectorAll('.divider').forEach((line, i) => { line.style.left = edges[i + 1] + '%'; });
  stage.querySelectorAll('.name').forEach((name, i) => {
    const room = (edges[i + 1] - edges[i]) / 100 * stage.clientWidth;
    name.style.left = (edges[i] + edges[i + 1]) / 2 + '%';
    name.style.visibility = room < name.offsetWidth ? 'hidden' : 'visible';
  });
};
const move = (inputs, moved, value) => {
  inputs[moved].value = value;
  inputs.forEach((input, i) => {
    const beyond = i < moved ? Number(input.value) > value : Number(input.value) < value;
    if (i !== moved && beyond) input.value = value;
  });
};
let held = null;
const drag = (event) => {
  const stage = event.target.closest('.stage');
  if (!stage) return;
  const inputs = [...stage.querySelectorAll('input')];
  const box = stage.getBoundingClientRect();
  const value = Math.min(100, Math.max(0, 100 * (event.clientX - box.left) / box.width));
  if (held === null) {
    const away = inputs.map((input) => Math.abs(Number(input.value) - value));
    held = away.indexOf(Math.min(...away));
    stage.setPointerCapture(event.pointerId);
  }
  move(inputs, held, value);
  place(stage);
};
element.addEventListener('pointerdown', drag);
element.addEventListener('pointermove', (event) => { if (held !== null) drag(event); });
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { held = null; });
element.addEventListener('input', (event) => {
  const stage = event.target.closest('.stage');
  const inputs = [...stage.querySelectorAll('input')];
  move(inputs, inputs.indexOf(event.target), Number(event.target.value));
  place(stage);
});
const all = () => element.querySelectorAll('.stage').forEach(place);
watch('value', all);
new ResizeObserver(all).observe(element);
all();
"""

EMPTY = '<div class="nothing">Drop two images of one scene on the left, or take an example below.</div>'


def slider(figures: Sequence[Figure]) -> str:
    """HTML of two or more pictures of one scene from left to right; the first gives the shape."""
    if not figures:
        return EMPTY
    width, height = figures[0].width, figures[0].height
    images = "".join(
        f'<img src="{figure.uri}" alt="{escape(figure.alt)}" draggable="false">' for figure in figures
    )
    names = "".join(f'<span class="name">{escape(figure.label)}</span>' for figure in figures)
    dividers = "".join(
        f'<input type="range" min="0" max="100" step="any" value="{100 * number / len(figures):.1f}" '
        f'aria-label="{escape(left.label)} up to here, then {escape(right.label)}">'
        '<span class="divider"></span>'
        for number, (left, right) in enumerate(pairwise(figures), start=1)
    )
    shape = f"aspect-ratio: {width} / {height}; max-width: min(100%, calc(70vh * {width / height:.4f}))"
    return f'<div class="stage" style="{shape}">{images}{names}{dividers}</div>'
