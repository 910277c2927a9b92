"""The download-free backends of the four protocols, under one name.

They are real on real images and need no weights, but they are not the foundation models: see README.md.
"""

from pipeline.classical_captions import ClassicalCaptioner
from pipeline.classical_masks import ClassicalSegmenter
from pipeline.classical_objects import ClassicalDetector
from pipeline.classical_texts import ClassicalTextEncoder

__all__ = ["ClassicalCaptioner", "ClassicalDetector", "ClassicalSegmenter", "ClassicalTextEncoder"]
