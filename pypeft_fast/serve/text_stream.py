"""The text of an answer while its tokens arrive: whole characters only, and nothing after a stop string."""

UNFINISHED = "\ufffd"  # how a tokenizer decodes the first bytes of a character whose other bytes are in later tokens
MOST_PENDING = 16  # tokens after which such bytes are taken to be no character


class TextStream:
    """Decodes the tokens of one answer.

    A token may change the text of the token before it (a space of SentencePiece, the bytes of one character), so each
    new token is decoded together with the tokens since the last piece of text.
    """

    def __init__(self, tokenizer, stops: tuple[str, ...] = ()):
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []  # the tokens of the last piece of text, then the tokens without text so far
        self._known = 0  # the number of tokens in _ids whose text has been decoded
        self._held = ""  # decoded text that may be the beginning of a stop string
        self.stopped = False  # whether a stop string has appeared

    def add(self, token: int) -> str:
        """The text that has become certain with this token; sets `stopped` at a stop string."""
        self._ids.append(token)
        before, now = self._decode(self._ids[: self._known]), self._decode(self._ids)
        waits = now.endswith(UNFINISHED) or len(now) <= len(before)
        if waits and len(self._ids) - self._known < MOST_PENDING:
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return self._without_stop(now[len(before) :])

    def end(self) -> str:
        """The rest of the text, after the last token."""
        if self.stopped:
            return ""
        before, now = self._decode(self._ids[: self._known]), self._decode(self._ids)
        text = self._without_stop(now[len(before) :])
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _without_stop(self, text: str) -> str:
        """The text before the first stop string, without an end that may begin a stop string; the end is held."""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        sure = len(text) - max((_beginning(text, stop) for stop in self._stops), default=0)
        self._held = text[sure:]
        return text[:sure]


def _beginning(text: str, stop: str) -> int:
    """The length of the longest end of the text that is a beginning of the stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
