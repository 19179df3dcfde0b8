"""What Python programs are written with: LiteLLM, LangChain and Instructor against a server.

    python3 frameworks.py FERRUM MODEL     (an instruct model whose template takes tools)
"""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Annotated

# Its own list of models will do.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import instructor
import litellm
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

from server import SCHEMA, serving


class Number(BaseModel):
    """A number."""

    model_config = ConfigDict(extra="forbid")
    n: Annotated[int, Field(ge=0, le=9)]


@tool
def look(n: Annotated[int, Field(ge=0, le=9)]) -> str:
    """Looks."""
    return f"nothing at {n}"


def lite_llm(url):
    messages = [{"role": "user", "content": "Say hello."}]
    ask = dict(model="openai/m", api_base=f"{url}/v1", api_key="secret", messages=messages, temperature=0, max_tokens=12, num_retries=0)
    whole = litellm.completion(**ask)
    text = whole.choices[0].message.content
    pieces = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    assert text == "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    # Its name for servers such as this one, which sends what it does not know as it is.
    assert litellm.completion(**ask | {"model": "hosted_vllm/m"}, top_k=1, min_p=0.1).choices[0].message.content == text
    tools = [{"type": "function", "function": {"name": "look", "description": "Looks", "parameters": SCHEMA}}]
    call = dict(tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=100)
    got = litellm.completion(**ask | call).choices[0]
    assert got.finish_reason == "tool_calls" and 0 <= json.loads(got.message.tool_calls[0].function.arguments)["n"] <= 9
    built = litellm.stream_chunk_builder(list(litellm.completion(**ask | call, stream=True))).choices[0].message
    assert built.tool_calls[0].function == got.message.tool_calls[0].function
    got = litellm.completion(**ask | {"max_tokens": 60}, response_format=Number)
    Number.model_validate_json(got.choices[0].message.content)
    ask.pop("messages")
    assert litellm.text_completion(**ask, prompt="one two three").choices[0].text
    vectors = litellm.embedding(model="openai/m", input=["a cat", "a dog"], api_base=f"{url}/v1", api_key="secret").data
    assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0]["embedding"]) - 1) < 1e-3
    answer = litellm.responses(model="openai/m", input="Say hello.", api_base=f"{url}/v1", api_key="secret", max_output_tokens=12, temperature=0)
    assert answer.output[0].content[0].text
    answer = asyncio.run(litellm.anthropic.messages.acreate(model="anthropic/m", messages=messages, max_tokens=12, api_base=url, api_key="secret"))
    assert answer["content"][0]["text"]
    try:
        litellm.completion(**ask | {"model": "openai/other"}, messages=messages)
        raise SystemExit("another model was taken")
    except litellm.NotFoundError:
        pass


def lang_chain(url):
    for over in ({}, {"use_responses_api": True}):
        model = ChatOpenAI(model="m", base_url=f"{url}/v1", api_key="secret", temperature=0, max_tokens=60, max_retries=0, **over)
        whole = model.invoke("Say hello.")
        text = "".join(piece.text for piece in model.stream("Say hello."))
        assert text == whole.text and whole.usage_metadata["input_tokens"] > 0, (text, whole)
        asked = HumanMessage("Look.")
        call = model.bind_tools([look], tool_choice="look", parallel_tool_calls=False).invoke([asked])
        assert call.tool_calls[0]["name"] == "look" and 0 <= call.tool_calls[0]["args"]["n"] <= 9
        result = look.invoke(call.tool_calls[0])
        answer = model.bind_tools([look]).invoke([asked, call, result])
        # So small a model may well look again.
        assert isinstance(result, ToolMessage) and (answer.content or answer.tool_calls)
        for method in ("json_schema", "function_calling"):
            assert 0 <= model.with_structured_output(Number, method=method).invoke("A number?").n <= 9
    vectors = OpenAIEmbeddings(model="m", base_url=f"{url}/v1", api_key="secret", check_embedding_ctx_length=False).embed_documents(["a cat", "a dog"])
    assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0]) - 1) < 1e-3


def instruct(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    ask = dict(model="m", messages=[{"role": "user", "content": "A number?"}], response_model=Number, temperature=0, max_tokens=60, max_retries=0)
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
        patched = instructor.from_openai(client, mode=mode)
        if mode != instructor.Mode.JSON:  # Which only asks for some object.
            assert 0 <= patched.chat.completions.create(**ask).n <= 9, mode
            assert [part.n for part in patched.chat.completions.create_partial(**ask)][-1] in range(10), mode


litellm.suppress_debug_info = True
with serving(*sys.argv[1:3], "--api-key", "secret") as url:
    for package, test in [("litellm", lite_llm), ("langchain-openai", lang_chain), ("instructor", instruct)]:
        test(url)
        print(package, version(package), "ok")
