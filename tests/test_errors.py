"""What a user sees of an error: one line."""

import pytest

from pipeline.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no such model\nand much more"), "no such model"),
        (RuntimeError("\n  size mismatch\n"), "size mismatch"),
        (OSError(), "OSError"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_librarys_error_is_told_by_its_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
