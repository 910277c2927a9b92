"""The page of `rwkvfusion app`: what stands where, and what happens when something is dropped or pressed."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

import gradio as gr

from model.app_examples import Example
from model.app_slider import SCRIPT, STYLE, slider
from model.app_visit import BRUSHES, Fused, Visit, Weights, metrics_of, picture, preview, suited
from model.inference import Colour
from model.metrics import DIRECTIONS
from model.sample import Settings
from pipeline.errors import InputError
from pipeline.images import image_facts
from pipeline.manifest import IMAGE_SUFFIXES

CSS = """
.said { padding: 6px 12px; border-left: 3px solid var(--color-accent); }
.said.error { border-color: #c62828; background: #fdecea; color: #7a1c12; }
.dark .said.error { background: #4a1d18; color: #ffd9d3; }
table.metrics { width: 100%; border-collapse: collapse; }
table.metrics, table.metrics * { border: 0 !important; }
table.metrics td { padding: 3px 10px; text-align: right; border: 0; font-variant-numeric: tabular-nums; }
table.metrics tr { border-bottom: 1px solid var(--border-color-primary) !important; }
table.metrics tr > :first-child { text-align: left; }
table.metrics caption { caption-side: bottom; text-align: left; font-size: 12px; opacity: .75; }
footer { display: none !important; }
"""
KEPT = 24 * 3600  # seconds that an upload is kept at most
GUESS = ""  # the choice of weights that leaves them to the images
DRAWN = "Paint each object in a colour of its own; eight at most."

Update = dict[Any, Any]


class Page:
    """The page's parts and its answers to events. ``folder`` is the only place where anything is written."""

    def __init__(
        self, folder: Path, weights: Sequence[Weights], settings: Settings, examples: Sequence[Example]
    ) -> None:
        self.folder, self.weights, self.settings, self.examples = folder, weights, settings, examples
        self.blocks = gr.Blocks(
            title="RWKVFusion", analytics_enabled=False, delete_cache=(KEPT // 24, KEPT), fill_width=True
        )
        with self.blocks:
            gr.Markdown("# RWKVFusion\nFuse registered images of one scene.")
            with gr.Row():
                with gr.Column(scale=2, min_width=340):
                    self._inputs()
                with gr.Column(scale=3, min_width=340):
                    self._outputs()
            self._events()

    def _inputs(self) -> None:
        self.visit = gr.State(None, time_to_live=KEPT, delete_callback=_forget)
        suffixes = list(IMAGE_SUFFIXES)
        with gr.Row():
            self.uploads = [
                gr.File(label=label, file_types=suffixes, elem_id=name, height=110, min_width=150)
                for name, label in (("first", "First image"), ("second", "Second image"))
            ]
        with gr.Accordion("A third image", open=False):
            self.uploads.append(
                gr.File(label="Third image", file_types=suffixes, elem_id="third", height=110)
            )
        choices = [("guess from the images", GUESS), *((each.label, each.name) for each in self.weights)]
        self.choice = gr.Dropdown(choices, value=GUESS, label="Weights", elem_id="weights")
        self.told = gr.HTML(elem_id="told")
        self.button = gr.Button("Fuse", variant="primary", elem_id="fuse")
        with gr.Accordion("Guidance", open=False, elem_id="guidance"):
            self.use_masks = gr.Checkbox(True, label="Masks of objects", elem_id="use_masks")
            with gr.Tab("Draw"):
                gr.HTML(f"<small>{DRAWN}</small>")
                self.drawing = gr.ImageEditor(
                    sources=[], transforms=[], layers=False, show_label=False, elem_id="drawing", height=300,
                    brush=gr.Brush(colors=list(BRUSHES), color_mode="fixed"), interactive=True, buttons=[],
                )  # fmt: skip
            with gr.Tab("Upload"):
                self.masks = gr.File(
                    label="Label map: 0 is background. Goes before a drawing.",
                    file_types=[".png", ".tif", ".tiff", ".npy"], elem_id="masks", height=110,
                )  # fmt: skip
            self.use_text = gr.Checkbox(True, label="Caption", elem_id="use_text")
            self.caption = gr.Textbox(
                show_label=False, container=False, lines=2, elem_id="caption", max_length=2000,
                placeholder="What the scene holds, in words",
            )  # fmt: skip
            self.encoder = gr.HTML(elem_id="encoder")
        self.colour = gr.Dropdown(
            [("auto: keep the sources' colour", "auto"), "ycbcr", ("rgb: band by band", "rgb"), "gray"],
            value="auto", label="Colour", elem_id="colour",
        )  # fmt: skip

    def _outputs(self) -> None:
        self.comparison = gr.HTML(slider([]), css_template=STYLE, js_on_load=SCRIPT, elem_id="comparison")
        self.status = gr.HTML(elem_id="status")
        self.download = gr.DownloadButton("Download", interactive=False, elem_id="download")
        self.table = gr.HTML(elem_id="metrics")
        pictures = [(preview(example.sources[0]), example.task) for example in self.examples]
        gr.Markdown("Examples, generated:")
        self.gallery = gr.Gallery(
            pictures, show_label=False, container=False, columns=4, height="auto", object_fit="cover",
            allow_preview=False, interactive=False, buttons=[], elem_id="examples",
        )  # fmt: skip

    def _events(self) -> None:
        seen = [self.visit, *self.uploads, self.choice]
        results = [self.visit, self.comparison, self.status, self.download, self.table]
        guidance = [self.use_masks, self.masks, self.drawing, self.use_text, self.caption, self.colour]
        shown = [*results, self.told, self.drawing, self.use_masks, self.use_text, self.caption, self.encoder]
        # One event at a time: fusing takes all cores, and a visitor's files must not change under it.
        private: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": "all",
            "concurrency_limit": 1,
        }
        changed = [event for upload in self.uploads for event in (upload.upload, upload.clear)]
        last = private | {"trigger_mode": "always_last"}  # uploads may come faster than they are looked at
        gr.on([*changed, self.choice.input], self.look, seen, shown, **last)
        taken = [*self.uploads, self.masks, self.caption, self.choice]
        self.gallery.select(self.take_example, None, taken, **private).then(self.look, seen, shown, **private)
        self.button.click(self.fuse, [*seen, *guidance], results, **private)

    def take_example(self, event: gr.SelectData) -> list[Any]:
        """Put an example's files, masks and caption where uploads go; its names tell the task."""
        example = self.examples[event.index]
        files = [str(path) for path in example.sources]
        masks = str(example.masks) if example.masks else None
        return [*files, *[None] * (3 - len(files)), masks, example.caption, GUESS]

    def look(self, visit: Visit | None, first: str, second: str, third: str, choice: str) -> Update:
        """Show the uploads, the weights that they ask for, and which guidance those know."""
        visit = visit or self._new_visit()
        update = {self.visit: visit, self.download: _NO_DOWNLOAD, self.table: "", self.status: ""}
        try:
            files = visit.take([first, second, third])
            figures = [picture(file, "source", file.stem) for file in files]
            update |= {self.comparison: slider(figures), self.drawing: _canvas(files)}
            if len(files) < 2:
                return update | {self.told: _said("Add a second image." if files else "")}
            weights = self._choose(visit, files, choice)
        except Exception as error:
            return update | {self.told: _problem(visit, error)}
        return (
            update
            | {self.told: _said(f"Weights: {weights.label}{'' if choice else ' (guessed)'}")}
            | self._guided(weights)
        )

    def _guided(self, weights: Weights) -> Update:
        """Which guidance can be given to these weights, and why not."""
        why = weights.why_no_caption
        told = why or f"Encoded by {weights.encoder}, which the weights were trained with."
        return {
            self.use_masks: gr.Checkbox(
                interactive=weights.masks,
                label=f"Masks of objects{'' if weights.masks else ': these weights take none'}",
            ),
            self.use_text: gr.Checkbox(interactive=not why),
            self.caption: gr.Textbox(interactive=not why),
            self.encoder: f"<small>{escape(told)}</small>",
        }

    def fuse(
        self, visit: Visit | None, first: str, second: str, third: str, choice: str, use_masks: bool,
        masks: str | None, drawing: dict[str, Any] | None, use_text: bool, caption: str, colour: Colour,
    ) -> Iterator[Update]:  # fmt: skip
        """Fuse and show the result, then measure it."""
        visit = visit or self._new_visit()
        yield {self.visit: visit, self.status: "", self.download: _NO_DOWNLOAD, self.table: ""}
        try:
            files = visit.take([first, second, third])
            if len(files) < 2:
                raise InputError("drop two images first")
            weights = self._choose(visit, files, choice)
            objects = None
            if use_masks and weights.masks:
                objects = visit.take_masks(masks) if masks else None
                if objects is None and drawing is not None:
                    objects = visit.label_map(drawing["layers"], image_facts(files[0]).size)
            words = caption.strip() if use_text and not weights.why_no_caption else ""
            settings = replace(self.settings, colour=colour)
            fused = visit.fuse(files, weights, settings, objects, words)
            yield self._shown(fused)
            yield {self.table: _table(metrics_of(fused))}
        except Exception as error:
            yield {self.status: _problem(visit, error), self.table: ""}

    def _shown(self, fused: Fused) -> Update:
        first, *others = fused.sample.sources
        figures = [
            picture(first.path, "source", first.role),
            picture(fused.path, "fused", "fused"),
            *(picture(source.path, "source", source.role) for source in others),
        ]
        return {
            self.comparison: slider(figures),
            self.status: _said(fused.line),
            self.download: gr.DownloadButton(
                f"Download {fused.path.name}", value=str(fused.path), interactive=True
            ),
            self.table: "Measuring …",
        }

    def _choose(self, visit: Visit, files: Sequence[Path], choice: str) -> Weights:
        if not choice:
            return suited(self.weights, files, visit.guess(files))
        return next(weights for weights in self.weights if weights.name == choice)

    def _new_visit(self) -> Visit:
        return Visit(Path(tempfile.mkdtemp(prefix="visit-", dir=self.folder)))


_NO_DOWNLOAD = gr.DownloadButton("Download", value=None, interactive=False)


def _forget(visit: Visit | None) -> None:
    if visit is not None:
        visit.forget()


def _canvas(files: Sequence[Path]) -> dict[str, Any] | None:
    """The first image to draw on."""
    return {"background": preview(files[0]), "layers": [], "composite": None} if files else None


def _said(text: str) -> str:
    return f'<div class="said" role="status">{escape(text)}</div>' if text else ""


def _problem(visit: Visit, error: Exception) -> str:
    """One line for the visitor; what nobody expected goes to the terminal as well."""
    if not isinstance(error, InputError):
        traceback.print_exception(error)
        text = f"unexpected {type(error).__name__}; the terminal that runs the page says more"
    else:
        text = visit.said(error)
    return f'<div class="said error" role="alert">{escape(text)}</div>'


def _table(values: dict[str, float]) -> str:
    if not values:
        return "<small>Not measured: too large, or no metric is defined for these sources.</small>"
    rows = "".join(_row(name, values[name]) for name in DIRECTIONS if name in values)
    note = "Profile reference, against the sources; ↑ higher is better. They compare results on one scene."
    return f'<table class="metrics">{rows}<caption>{note}</caption></table>'


def _row(name: str, value: float) -> str:
    facts = DIRECTIONS[name]
    said = f"{value:.{facts.decimals}f} {facts.unit}" if isfinite(value) else "not defined"
    return f"<tr><td>{name} {'↑' if facts.better == 'higher' else '↓'}</td><td>{said}</td></tr>"
