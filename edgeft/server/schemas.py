"""Takes JSON bodies of OpenAI's API, gives them checked: strict types, and a limit on everything.

Unknown fields are ignored, as OpenAI's own server ignores them. `unsupported_field` names a field that
would change the answer and is not supported.

A whole number may be written as 5.0: some languages have no other numbers.
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
MAX_STOPS = 64
MAX_CHOICES = 64
"""answers to one request: prompts times n"""
MAX_TEXTS = 2048
"""that one request may embed, as OpenAI has it"""
MAX_MESSAGES = 1000
MAX_TOP_LOGPROBS = 20
"""likeliest tokens whose log probabilities are given with each token"""
MAX_TOOLS = 128
"""functions of one request, as with OpenAI"""
MAX_LOGPROBS = 2**18
"""log probabilities that are kept for a request; those of one whole context are always allowed"""

Text = Annotated[str, StringConstraints(max_length=MAX_BODY_BYTES)]
Stop = Annotated[str, StringConstraints(max_length=256)]
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

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in values.items()
        }


class StreamOptions(Body):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    """the usage so far in every chunk; vLLM's"""


class JsonSchema(Body):
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """the schema of a json_object or json_schema, as llama-cpp-python and llama-server take it"""


Choices = Annotated[list[Text], Field(max_length=1024)]


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    json_: Annotated[dict[str, Any] | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: None = None
    whitespace_pattern: None = None


class Generation(Body):
    """The fields that chat and text completions share."""

    model: Text | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    timings_per_token: bool | None = False
    """the times so far in every chunk of a stream; llama-server's"""
    return_progress: bool | None = False
    """chunks of a stream that say how much of the prompt was read; llama-server's"""
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
    repeat_last_n: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """tokens that the penalties count; llama-server's"""
    logit_bias: (
        Annotated[dict[str, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None
    ignore_eos: bool = False
    """continue after the model's stop tokens, for timing; a field of vLLM and llama-server"""
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    """llama-server's"""
    grammar: Text | None = None
    """GBNF, as llama-server takes it"""
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | Text | None = None
    """this and the next three: vLLM's older names of what `structured_outputs` holds"""
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Without empty texts, which some clients send for none."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, stops))


class ContentPart(Body):
    """A part of a message: text, or the text of a refusal."""

    type: Literal["text", "refusal"]
    text: Text = ""
    refusal: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(kind := values.get("type"), str):
            if kind not in ("text", "refusal"):
                raise ValueError(f"{kind[:64]!r} is not supported: models here read text alone")
            if kind not in values:
                raise ValueError(f"a part of the type {kind} needs {kind}")
        return values


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
    content: Text | Annotated[list[ContentPart], Field(max_length=256)] | None = None
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
            return "".join(part.text or part.refusal for part in self.content)
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
    add_generation_prompt: bool | None = None
    """whether the prompt ends where an answer begins; vLLM's"""
    continue_final_message: bool | None = None
    """whether the answer goes on with the last message, which is the assistant's; vLLM's. None: yes, as
    llama-server does, unless `add_generation_prompt` is set"""
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
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Text | Ids], Field(min_length=1, max_length=MAX_CHOICES)]
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
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Text | Ids], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """values of a vector: the first ones, scaled to length 1 again"""


class Tokenize(Body):
    model: Text | None = None
    content: Text
    add_special: bool | None = False
    """with the bos in front, where the vocabulary wants it"""
    parse_special: bool | None = True
    """whether special tokens in the text are read as such"""
    with_pieces: bool | None = False
    """each token with its text"""


class Detokenize(Body):
    model: Text | None = None
    tokens: Ids


UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "suffix": ("",), "audio": (), "modalities": (["text"], []),
    "prediction": (), "web_search_options": (),
    # vLLM
    "min_tokens": (0,), "stop_token_ids": ([],), "bad_words": ([],), "allowed_token_ids": ([],),
    "use_beam_search": (False,), "length_penalty": (1, 0), "truncate_prompt_tokens": (),
    "prompt_logprobs": (), "include_stop_str_in_output": (False,), "skip_special_tokens": (True,),
    "logits_processors": ([],), "documents": ([],), "guided_whitespace_pattern": (),
    "structural_tag": (), "return_token_ids": (False,), "prompt_embeds": (),
    # llama-server
    "mirostat": (0,), "typical_p": (1,), "tfs_z": (1,), "top_n_sigma": (-1, 0), "xtc_probability": (0,),
    "dry_multiplier": (0,), "dynatemp_range": (0,), "adaptive_target": (-1,), "samplers": (),
    "n_keep": (0, -1), "n_discard": (0,), "t_max_predict_ms": (0, -1), "n_indent": (0,), "n_probs": (0,),
    "post_sampling_probs": (False,),
    "lora": ([],), "image_data": ([],), "reasoning_format": ("none", "auto"),
    # others
    "enable_thinking": (), "top_a": (0,), "no_repeat_ngram_size": (0,), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "smoothing_factor": (0,), "typical": (1,), "chat_template": (),
}  # fmt: skip
"""fields of other servers that would change the answer -> values beside null that change nothing"""
INSTEAD = {
    "n_probs": "logprobs",
    "enable_thinking": "chat_template_kwargs",
}
"""field -> the one that does the same here"""


def unsupported_field(raw: dict[str, Any]) -> str | None:
    """The first field that asks for something that no model here can do, if any."""
    for name, neutral in UNSUPPORTED_FIELDS.items():
        if raw.get(name) is not None and raw[name] not in neutral:
            return name
    if raw.get("best_of") not in (None, raw.get("n") or 1):
        return "best_of"
    return None
