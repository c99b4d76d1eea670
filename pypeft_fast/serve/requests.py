"""The request of the OpenAI chat-completions interface: its fields, their bounds, and what is refused."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from .errors import ApiError
from .limits import LONGEST_STOP, MOST_FIELDS, MOST_MESSAGES, MOST_STOPS
from .names import LONGEST_NAME

# Fields of the interface that have no effect on an answer.
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "parallel_tool_calls"}
# {field of the interface that this server lacks: the values that ask for nothing}
LACKING: dict[str, tuple] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


def _unicode(text: str) -> str:
    """JSON can hold half of a surrogate pair, as \\ud800, which tokenizers do not take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair, which is not Unicode") from error
    return text


Content = Annotated[str, AfterValidator(_unicode)]
Stop = Annotated[Content, StringConstraints(min_length=1, max_length=LONGEST_STOP)]


def _without_nulls(value: Any) -> Any:
    """A field that is null is a field that is left out, as in OpenAI's interface. ValueError for too many fields."""
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_FIELDS:
        raise ValueError(f"{len(value)} fields, and an object here has at most {MOST_FIELDS}")
    return {key: its for key, its in value.items() if its is not None}


def _listed(value: Any) -> Any:
    """A text alone is a list of one text."""
    return [value] if isinstance(value, str) else value


def _asks_for_nothing(value: Any, neutral: tuple) -> bool:
    """Whether a value is a neutral one; to Python, true is 1 and false is 0."""
    return any(value == its and isinstance(value, bool) == isinstance(its, bool) for its in neutral)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    _nulls = model_validator(mode="before")(_without_nulls)


class Text(_Part):
    type: Literal["text"]
    text: Content


def _as_parts(value: Any) -> Any:
    """A text alone is a list of one part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Text], BeforeValidator(_as_parts)] = Field(max_length=MOST_MESSAGES, fail_fast=True)
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """{"role", "content"} as chat templates take it."""
        text = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Part):
    """The body of POST /v1/chat/completions."""

    model: str = Field(max_length=2 * LONGEST_NAME)
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    stop: Annotated[list[Stop], BeforeValidator(_listed)] = Field([], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, value: Any) -> Any:
        """Leaves out the fields without an effect. ApiError for a field that would have an effect elsewhere."""
        value = _without_nulls(value)
        if not isinstance(value, dict):
            return value
        for name, neutral in LACKING.items():
            if name in value and not _asks_for_nothing(value[name], neutral):
                raise ApiError(400, f"{name} is not supported by this server; leave it out", param=name)
        return {key: its for key, its in value.items() if key not in IGNORED and key not in LACKING}

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class AdapterRequest(_Part):
    """The body of PUT /v1/models/NAME. folder: in the server's adapter folder; None: the folder of that name."""

    folder: str | None = None
