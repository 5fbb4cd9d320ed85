"""Real clients of Python against a server: one line of JSON for each client and feature.

    VENV/bin/python python_clients.py http://127.0.0.1:8080 MODEL [CLIENT ...]

Runs in the environment of the clients, without edgeft. {"client", "version", "feature", "error"}; an
empty error says that it works. What is checked is the form of the answers, not what they say.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, MODEL = sys.argv[1], sys.argv[2]
V1 = f"{URL}/v1"
ASK = "What is the weather in Paris?"
HI = [{"role": "user", "content": ASK}]
TOKENS = 40
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}

os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": V1, "NO_PROXY": "127.0.0.1"}
os.environ |= {"ANTHROPIC_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
warnings.simplefilter("ignore")


def city_class() -> Any:
    from typing import Annotated

    from pydantic import BaseModel, Field

    class City(BaseModel):
        """A city."""

        name: Annotated[str, Field(max_length=20)]
        size: Annotated[int, Field(ge=0, le=99)]

    return City


def is_call(name: Any, arguments: Any) -> None:
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert name == "get_weather" and isinstance(arguments["city"], str), (name, arguments)


class OpenAI:
    package = "openai"

    def __init__(self) -> None:
        import openai

        self.client = openai.OpenAI(max_retries=0)

    def chat(self) -> None:
        done = self.client.chat.completions.create(model=MODEL, messages=HI, max_tokens=TOKENS)
        assert done.choices[0].message.content and done.usage.completion_tokens

    def stream(self) -> None:
        options = {"include_usage": True}
        chunks = list(
            self.client.chat.completions.create(
                model=MODEL, messages=HI, max_tokens=TOKENS, stream=True, stream_options=options
            )
        )
        assert any(c.choices and c.choices[0].delta.content for c in chunks) and chunks[-1].usage

    def schema(self) -> None:
        done = self.client.chat.completions.parse(
            model=MODEL, messages=HI, response_format=city_class(), max_tokens=100
        )
        assert done.choices[0].message.parsed.name is not None

    def tools(self) -> None:
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            done = self.client.chat.completions.create(
                model=MODEL, messages=HI, tools=[TOOL], tool_choice=choice, max_tokens=100
            )
            call = done.choices[0].message.tool_calls[0]
            is_call(call.function.name, call.function.arguments)
        answered = [
            *HI,
            done.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        done = self.client.chat.completions.create(
            model=MODEL, messages=answered, tools=[TOOL], max_tokens=TOKENS
        )
        assert done.choices[0].message.content or done.choices[0].message.tool_calls

    def embeddings(self) -> None:
        done = self.client.embeddings.create(model=MODEL, input=["a", "b"], dimensions=16)
        assert len(done.data) == 2 and len(done.data[0].embedding) == 16

    def responses(self) -> None:
        responses = self.client.responses
        first = responses.create(model=MODEL, input=ASK, max_output_tokens=TOKENS)
        assert first.output_text
        with responses.stream(
            model=MODEL, input="And now?", previous_response_id=first.id, max_output_tokens=TOKENS
        ) as stream:
            assert next(iter([e.type for e in stream])) == "response.created"
        parsed = responses.parse(
            model=MODEL, input=ASK, text_format=city_class(), max_output_tokens=100
        )
        assert parsed.output_parsed.name is not None
        tool = {"type": "function", **FUNCTION}
        called = responses.create(
            model=MODEL, input=ASK, tools=[tool], tool_choice="required", max_output_tokens=100
        )
        (call,) = [item for item in called.output if item.type == "function_call"][:1]
        is_call(call.name, call.arguments)


class Anthropic:
    package = "anthropic"

    def __init__(self) -> None:
        import anthropic

        self.client = anthropic.Anthropic(base_url=URL, max_retries=0)
        self.tool = {"name": "get_weather", "input_schema": PARAMETERS}

    def chat(self) -> None:
        done = self.client.messages.create(
            model=MODEL, messages=HI, max_tokens=TOKENS, system="Be brief."
        )
        assert done.content[0].text and done.usage.output_tokens
        assert self.client.messages.count_tokens(model=MODEL, messages=HI).input_tokens

    def stream(self) -> None:
        with self.client.messages.stream(model=MODEL, messages=HI, max_tokens=TOKENS) as stream:
            text = "".join(stream.text_stream)
            assert text and stream.get_final_message().usage.output_tokens

    def tools(self) -> None:
        how = {"model": MODEL, "messages": HI, "max_tokens": 100, "tools": [self.tool]}
        choice = {"type": "any"}
        done = self.client.messages.create(**how, tool_choice=choice)
        use = next(block for block in done.content if block.type == "tool_use")
        is_call(use.name, use.input)
        with self.client.messages.stream(**how, tool_choice=choice) as stream:
            streamed = stream.get_final_message()
        is_call(streamed.content[-1].name, streamed.content[-1].input)
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turns = [
            *HI,
            {"role": "assistant", "content": done.content},
            {"role": "user", "content": [result]},
        ]
        assert self.client.messages.create(**how | {"messages": turns}).content


class Ollama:
    package = "ollama"

    def __init__(self) -> None:
        import ollama

        self.client = ollama.Client(host=URL)
        self.options = {"num_predict": TOKENS}

    def chat(self) -> None:
        done = self.client.chat(MODEL, messages=HI, options=self.options)
        assert done.message.content and done.eval_count
        assert self.client.generate(MODEL, prompt=ASK, options=self.options).response
        assert self.client.list().models[0].model and self.client.show(MODEL).details

    def stream(self) -> None:
        parts = list(self.client.chat(MODEL, messages=HI, options=self.options, stream=True))
        assert "".join(part.message.content for part in parts) and parts[-1].done

    def schema(self) -> None:
        form = city_class().model_json_schema()
        done = self.client.chat(MODEL, messages=HI, format=form, options={"num_predict": 100})
        city_class().model_validate_json(done.message.content)

    def tools(self) -> None:
        # Ollama's API has no tool_choice: the model may answer in words.
        done = self.client.chat(MODEL, messages=HI, tools=[TOOL], options=self.options)
        assert done.message.content or done.message.tool_calls


class LangChain:
    package = "langchain-openai"

    def __init__(self) -> None:
        from langchain_openai import ChatOpenAI

        self.model = ChatOpenAI(model=MODEL, max_tokens=100, max_retries=0)

    def chat(self) -> None:
        assert self.model.invoke(ASK).content

    def stream(self) -> None:
        assert "".join(part.content for part in self.model.stream(ASK))

    def schema(self) -> None:
        assert self.model.with_structured_output(city_class(), method="json_schema").invoke(ASK)

    def tools(self) -> None:
        (call, *_) = self.model.bind_tools([TOOL], tool_choice="any").invoke(ASK).tool_calls
        is_call(call["name"], call["args"])
        assert self.model.with_structured_output(city_class(), method="function_calling").invoke(
            ASK
        )

    def embeddings(self) -> None:
        from langchain_openai import OpenAIEmbeddings

        # Otherwise it sends the token ids of OpenAI's vocabulary.
        embeddings = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False)
        assert len(embeddings.embed_documents(["a", "b"])) == 2

    def responses(self) -> None:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model=MODEL, max_tokens=TOKENS, use_responses_api=True, max_retries=0)
        assert model.invoke(ASK).content and list(model.stream(ASK))


class LlamaIndex:
    package = "llama-index-llms-openai-like"

    def __init__(self) -> None:
        from llama_index.llms.openai_like import OpenAILike

        self.model = OpenAILike(
            model=MODEL, api_base=V1, api_key="none", is_chat_model=True, max_tokens=100,
            is_function_calling_model=True, max_retries=0, context_window=2048,
        )  # fmt: skip

    def chat(self) -> None:
        assert self.model.complete(ASK).text

    def stream(self) -> None:
        assert list(self.model.stream_complete(ASK))[-1].text

    def tools(self) -> None:
        from llama_index.core.tools import FunctionTool

        def get_weather(city: str) -> str:
            """Weather of a city"""
            return "sunny"

        tool = FunctionTool.from_defaults(get_weather)
        done = self.model.chat_with_tools([tool], user_msg=ASK, tool_required=True)
        (call, *_) = self.model.get_tool_calls_from_response(done)
        is_call(call.tool_name, call.tool_kwargs)


class LiteLLM:
    package = "litellm"

    def __init__(self) -> None:
        import litellm

        litellm.telemetry = False
        self.litellm = litellm
        self.how = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": "none"}

    def chat(self) -> None:
        done = self.litellm.completion(**self.how, messages=HI, max_tokens=TOKENS)
        assert done.choices[0].message.content

    def stream(self) -> None:
        parts = self.litellm.completion(**self.how, messages=HI, max_tokens=TOKENS, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts)

    def schema(self) -> None:
        done = self.litellm.completion(
            **self.how, messages=HI, max_tokens=100, response_format=city_class()
        )
        city_class().model_validate_json(done.choices[0].message.content)

    def tools(self) -> None:
        done = self.litellm.completion(
            **self.how, messages=HI, max_tokens=100, tools=[TOOL], tool_choice="required"
        )
        call = done.choices[0].message.tool_calls[0]
        is_call(call.function.name, call.function.arguments)

    def embeddings(self) -> None:
        assert len(self.litellm.embedding(**self.how, input=["a", "b"]).data) == 2

    def responses(self) -> None:
        assert self.litellm.responses(**self.how, input=ASK, max_output_tokens=TOKENS).output


class Instructor:
    package = "instructor"

    def _ask(self, mode: str) -> None:
        import instructor
        import openai

        client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=instructor.Mode[mode])
        done = client.chat.completions.create(
            model=MODEL, messages=HI, response_model=city_class(), max_tokens=100, max_retries=0
        )
        assert done.name is not None

    def schema(self) -> None:
        self._ask("JSON_SCHEMA")

    def tools(self) -> None:
        self._ask("TOOLS")


class PydanticAI:
    package = "pydantic-ai-slim"

    def _agent(self, responses: bool = False, **how: Any) -> Any:
        from pydantic_ai import Agent
        from pydantic_ai.models import openai

        kinds = openai.OpenAIResponsesModel, openai.OpenAIChatModel
        model = kinds[0](MODEL) if responses else kinds[1](MODEL)
        return Agent(model, model_settings={"max_tokens": 100}, **how)

    def chat(self) -> None:
        assert self._agent().run_sync(ASK).output

    def stream(self) -> None:
        import asyncio

        async def read() -> str:
            async with self._agent().run_stream(ASK) as stream:
                return await stream.get_output()

        assert asyncio.run(read())

    def schema(self) -> None:
        from pydantic_ai import NativeOutput

        assert self._agent(output_type=NativeOutput(city_class())).run_sync(ASK).output

    def tools(self) -> None:
        assert self._agent(output_type=city_class()).run_sync(ASK).output

    def responses(self) -> None:
        assert self._agent(responses=True).run_sync(ASK).output


class Smolagents:
    package = "smolagents"

    def __init__(self) -> None:
        from smolagents import OpenAIServerModel

        self.model = OpenAIServerModel(MODEL, api_base=V1, api_key="none", max_tokens=100)
        self.messages = [{"role": "user", "content": [{"type": "text", "text": ASK}]}]

    def chat(self) -> None:
        assert self.model.generate(self.messages).content

    def stream(self) -> None:
        parts = list(self.model.generate_stream(self.messages))
        assert "".join(part.content or "" for part in parts)

    def schema(self) -> None:
        named = {"name": "city", "schema": city_class().model_json_schema()}
        form = {"type": "json_schema", "json_schema": named}
        done = self.model.generate(self.messages, response_format=form)
        city_class().model_validate_json(done.content)

    def tools(self) -> None:
        from smolagents import tool

        @tool
        def get_weather(city: str) -> str:
            """Weather of a city.

            Args:
                city: its name
            """
            return "sunny"

        done = self.model.generate(self.messages, tools_to_call_from=[get_weather])
        call = done.tool_calls[0].function
        is_call(call.name, call.arguments)


class LLM:
    package = "llm"

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp())
        models = [{"model_id": "served", "model_name": MODEL, "api_base": V1,
                   "supports_schema": True, "supports_tools": True}]  # fmt: skip
        (self.home / "extra-openai-models.yaml").write_text(json.dumps(models))

    def _ask(self, *options: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), "-m", "served", "--no-log", *options]
        command += ["-o", "max_tokens", "100", ASK]
        environment = os.environ | {"LLM_USER_PATH": str(self.home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr[-300:]
        return done.stdout

    def chat(self) -> None:
        self._ask("--no-stream")

    def stream(self) -> None:
        self._ask()

    def schema(self) -> None:
        json.loads(self._ask("--no-stream", "--schema", json.dumps(PARAMETERS)))

    def tools(self) -> None:
        self._ask("--no-stream", "-T", "llm_time", "--chain-limit", "2")


CLIENTS = (
    OpenAI, Anthropic, Ollama, LangChain, LlamaIndex, LiteLLM, Instructor, PydanticAI, Smolagents, LLM,
)  # fmt: skip
FEATURES = ("chat", "stream", "schema", "tools", "embeddings", "responses")


def outcome(test: Callable[[], None]) -> str:
    """The error of a test in one line, "" for none."""
    try:
        test()
    except Exception as error:  # noqa: BLE001  whatever a client raises
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return ""


def main() -> None:
    chosen = [client for client in CLIENTS if client.package in sys.argv[3:]] or CLIENTS
    for client in chosen:
        for feature in FEATURES:
            if not hasattr(client, feature):
                continue
            error = outcome(lambda client=client, feature=feature: getattr(client(), feature)())
            version = importlib.metadata.version(client.package)
            line = {"client": client.package, "version": version, "feature": feature}
            print(json.dumps(line | {"error": error}), flush=True)


if __name__ == "__main__":
    main()
