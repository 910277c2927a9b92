"""One name for one kind of object, however a prompt, a detector or a person writes it."""

from __future__ import annotations

_SYNONYMS = {
    "person": "people pedestrian man men woman women human child children boy girl cyclist rider persons",
    "car": "automobile sedan suv taxi cab jeep",
    "truck": "lorry pickup",
    "motorcycle": "motorbike scooter moped",
    "bicycle": "bike cycle",
    "lamp": "streetlight streetlamp light lamppost",
}
_CANONICAL = {word: label for label, words in _SYNONYMS.items() for word in words.split()}
_DETERMINERS = {"a", "an", "the", "some", "several", "many", "two", "three", "four", "five", "six"}
_NOT_PLURAL = ("ss", "us", "is", "lens", "gas", "canvas")


def canonical_label(label: str) -> str:
    """Lower case, singular, no article, number or punctuation; one word for synonyms (people -> person)."""
    shorter = _step(label)
    return shorter if shorter == label else canonical_label(shorter)


def _step(label: str) -> str:
    words = label.lower().replace("_", " ").strip(" .,;:!?'\"").split()
    if len(words) > 1 and words[0] in _DETERMINERS:
        words = words[1:]
    if not words:
        return "object"
    joined = "".join(words)
    if joined in _CANONICAL or _singular(joined) in _CANONICAL:
        return _CANONICAL.get(joined) or _CANONICAL[_singular(joined)]
    return " ".join([*words[:-1], _singular(words[-1])])


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(_NOT_PLURAL):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "uses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1]
