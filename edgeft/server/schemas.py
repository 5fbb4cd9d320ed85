"""Takes JSON bodies of OpenAI's API, gives them checked: strict types, and a limit on everything.

Unknown fields are ignored, as OpenAI's own server ignores them. `unsupported_field` names a field that
would change the answer and is not supported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

MAX_BODY_BYTES = 1_000_000
MAX_STOPS = 16
MAX_CHOICES = 64
"""answers to one request: prompts times n"""
MAX_MESSAGES = 1000
MAX_TOP_LOGPROBS = 20
"""likeliest tokens whose log probabilities are given with each token"""
MAX_TOOLS = 128
"""functions of one request, as with OpenAI"""
MAX_LOGPROBS = 2**18
"""log probabilities that are kept for a request; those of one whole context are always allowed"""

Text = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(max_length=MAX_BODY_BYTES)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_TOKENS = 2**31 - 1
Unlimited = BeforeValidator(
    lambda value: MAX_TOKENS if value == -1 and type(value) is int else value
)
"""-1 = as many tokens as the context holds, as llama-server has it"""
_FIELDS = AliasChoices("max_tokens", "n_predict")


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(Body):
    include_usage: bool | None = False


class Generation(Body):
    """The fields that chat and text completions share."""

    model: Text | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[
        Annotated[Finite, Field(gt=0, le=10)] | None,
        Field(validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")),
    ] = None
    logit_bias: (
        Annotated[dict[str, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    ignore_eos: bool = False
    """continue after the model's stop tokens, for timing; a field of vLLM and llama-server"""

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(Body):
    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    name: FunctionName
    arguments: Text | dict[str, Any] | None = None
    """a JSON object as text; Ollama's clients send the object itself"""


class Call(Body):
    id: Annotated[str, StringConstraints(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[TextPart], Field(max_length=256)] | None = None
    reasoning_content: Annotated[
        Text | None, Field(validation_alias=AliasChoices("reasoning_content", "reasoning"))
    ] = None
    """of an assistant's message; vLLM's other name is reasoning"""
    tool_calls: Annotated[list[Call], Field(max_length=MAX_TOOLS)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    name: Annotated[str, StringConstraints(max_length=256)] | None = None

    @model_validator(mode="after")
    def _only_an_answer_is_without_content(self) -> ChatMessage:
        if self.content is None and self.role not in ("assistant", "tool", "function"):
            raise ValueError(f"a message of the {self.role} needs content")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """their JSON schema"""
    strict: bool | None = None
    """a schema that cannot be followed is refused also where a call is not required"""


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function


class FunctionChoice(Body):
    name: FunctionName


class ToolChoice(Body):
    type: Literal["function"] = "function"
    function: FunctionChoice


class JsonSchema(Body):
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """the schema of a json_object or json_schema, as llama-cpp-python and llama-server take it"""


class Chat(Generation):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[
        Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None,
        Unlimited,
        Field(validation_alias=_FIELDS),
    ] = None
    max_completion_tokens: Annotated[
        Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None, Unlimited
    ] = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    """variables of the chat template, such as enable_thinking"""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] | None = None
    """OpenAI's older name of tools"""
    function_call: Literal["none", "auto"] | FunctionChoice | None = None
    """and of tool_choice"""

    @property
    def offered(self) -> list[Function]:
        """The functions under either name."""
        return [tool.function for tool in self.tools or ()] + (self.functions or [])


class Completion(Generation):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[
        Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None,
        Unlimited,
        Field(validation_alias=_FIELDS),
    ] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None


class Embeddings(Body):
    model: Text | None = None
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class Tokenize(Body):
    model: Text | None = None
    content: Text


class Detokenize(Body):
    model: Text | None = None
    tokens: Ids


UNSUPPORTED_FIELDS = (
    "suffix", "audio", "modalities", "prediction", "continue_final_message",
    "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs", "min_tokens", "enable_thinking",
)  # fmt: skip
"""fields of OpenAI, vLLM and llama-server that would change the answer"""
INSTEAD = {
    "json_schema": "response_format",
    "guided_json": "response_format",
    "enable_thinking": "chat_template_kwargs",
}
"""field -> the one that does the same here"""


def unsupported_field(raw: dict[str, Any]) -> str | None:
    """The first field that asks for something that no model here can do, if any."""
    for name in UNSUPPORTED_FIELDS:
        is_set = raw.get(name) or (name == "enable_thinking" and raw.get(name) is not None)
        if is_set and raw[name] != ["text"]:
            return name
    if raw.get("best_of") not in (None, raw.get("n") or 1):
        return "best_of"
    return None
