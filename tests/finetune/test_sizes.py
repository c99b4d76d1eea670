"""Sizes with units."""

import pytest

from pypeft_fast.finetune.sizes import bytes_in, written


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 1024**3), ("16 GB", 16 * 10**9), ("1.5mib", 3 * 2**19), (" 80gib ", 80 * 1024**3), ("7", 7)],
)
def test_a_size_is_read(text, size):
    assert bytes_in(text) == size


@pytest.mark.parametrize("text", ["24 bananas", "", "GiB", "-1GiB", "0GB", "nanGiB", "1e3GB", "9" * 400 + "TB", "24G"])
def test_another_text_is_an_error(text):
    with pytest.raises(ValueError, match="such as 24GiB"):
        bytes_in(text)


def test_a_size_is_written_with_three_digits():
    assert [written(n) for n in (0, 999, 1024**2 * 1.5, 24 * 1024**3)] == ["0 B", "999 B", "1.5 MiB", "24 GiB"]
