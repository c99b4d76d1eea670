"""The text of an answer token by token: whole characters, and nothing of a stop string."""

import pytest

from pypeft_fast.serve.text_stream import MOST_PENDING, TextStream
from tests.finetune.conftest import make_tokenizer

TEXT = "Grüße, 世界! 👩‍🚀 is e\u0301 and it is it is its end"


class Characters:
    """A tokenizer whose tokens are characters, except 0, a special token."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i)


def pieces(stream, ids):
    found = []
    for token in ids:
        found.append(stream.add(token))
        if stream.stopped:
            break
    return [*found, stream.end()]


def test_the_pieces_are_the_text_and_whole_characters():
    tokenizer = make_tokenizer()
    found = pieces(TextStream(tokenizer), tokenizer(TEXT)["input_ids"])
    assert "".join(found) == TEXT and not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 20  # it does not wait for the end


@pytest.mark.parametrize("stop", ["it is its", "its", "世", "end", "!", "not there", "end of it"])
def test_a_stop_string_and_what_follows_are_left_out(stop):
    expected = TEXT.partition(stop)[0]
    for tokenizer, ids in ((Characters(), [ord(c) for c in TEXT]), (t := make_tokenizer(), t(TEXT)["input_ids"])):
        stream = TextStream(tokenizer, ("nowhere", stop))
        assert "".join(pieces(stream, ids)) == expected and stream.stopped == (stop in TEXT)


def test_the_first_of_several_stop_strings_counts():
    assert "".join(pieces(TextStream(Characters(), ("c", "bc")), map(ord, "abcd"))) == "a"


def test_only_the_beginning_of_a_stop_string_is_held():
    stream = TextStream(Characters(), ("xyz",))
    assert [stream.add(ord(c)) for c in "axyxy"] == ["a", "", "", "xy", ""] and stream.end() == "xy"


def test_bytes_that_are_no_character_are_written_in_the_end():
    tokenizer = make_tokenizer()
    first = tokenizer("世")["input_ids"][0]
    assert pieces(TextStream(tokenizer), [first]) == ["", "\ufffd"]
    stream = TextStream(tokenizer)
    assert "".join(stream.add(first) for _ in range(MOST_PENDING)) != ""


def test_tokens_without_text_do_not_pile_up():
    stream = TextStream(Characters())
    for _ in range(10 * MOST_PENDING):
        assert stream.add(0) == ""
    assert len(stream._ids) < 2 * MOST_PENDING and stream.add(ord("a")) + stream.end() == "a"
