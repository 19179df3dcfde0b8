"""OpenAI's and Anthropic's own Python clients against a server.

    python3 sdk.py FERRUM MODEL     (an instruct model whose template takes tools)
"""

import json
import sys

import anthropic
import openai

from server import SCHEMA, serving


def openai_client(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    assert [m.id for m in client.models.list()] == ["m"]
    ask = dict(model="m", messages=[{"role": "user", "content": "Say hello."}], temperature=0, max_tokens=12)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    # The token that ends an answer counts and is not shown.
    assert whole.usage.completion_tokens - len(whole.choices[0].logprobs.content) in (0, 1)
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content and pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(client.chat.completions.create(**ask | {"temperature": 1}, n=3, seed=1).choices) == 3

    schema = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}
    got = client.chat.completions.create(**ask | {"max_tokens": 60}, response_format=schema)
    assert 0 <= json.loads(got.choices[0].message.content)["n"] <= 9
    tool = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": SCHEMA}}
    got = client.chat.completions.create(**ask | {"max_tokens": 100}, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    call = got.choices[0].message.tool_calls[0]
    assert (call.function.name, got.choices[0].finish_reason) == ("look", "tool_calls") and 0 <= json.loads(call.function.arguments)["n"] <= 9

    # Left to itself this model writes its call as plain JSON in a fenced block, without the marks that its template teaches.
    weather = {"name": "weather", "description": "The weather in a city", "parameters":
               {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    ask_weather = dict(model="m", messages=[{"role": "user", "content": "What is the weather in Paris?"}], temperature=0, max_tokens=60,
                       tools=[{"type": "function", "function": weather}])
    got = client.chat.completions.create(**ask_weather).choices[0]
    assert got.finish_reason == "tool_calls" and json.loads(got.message.tool_calls[0].function.arguments)["city"] == "Paris", got
    called = [c.choices[0].delta.tool_calls[0] for c in client.chat.completions.create(**ask_weather, stream=True) if c.choices[0].delta.tool_calls]
    assert called[0].function.name == "weather" and "Paris" in "".join(c.function.arguments for c in called)

    got = client.completions.create(model="m", prompt=[1, 2, 3, 4], echo=True, logprobs=1, max_tokens=1, temperature=0)
    assert len(got.choices[0].logprobs.token_logprobs) == 5 and got.choices[0].logprobs.token_logprobs[0] is None
    vectors = client.embeddings.create(model="m", input=["a cat", "a dog"])
    assert len(vectors.data) == 2 and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-3

    ask = dict(model="m", input="Say hello.", instructions="Be short.", temperature=0, max_output_tokens=12)
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert deltas == whole.output_text == events[-1].response.output_text
    got = client.responses.create(**ask | {"max_output_tokens": 100}, tools=[{"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}],
                                  tool_choice="required", parallel_tool_calls=False)
    assert got.output[0].type == "function_call" and 0 <= json.loads(got.output[0].arguments)["n"] <= 9

    for wrong, error in [({"temperature": -1}, openai.BadRequestError), ({"model": "other"}, openai.NotFoundError)]:
        try:
            client.chat.completions.create(**dict(model="m", messages=[{"role": "user", "content": "a"}]) | wrong)
            raise SystemExit(f"{wrong} was taken")
        except error as e:
            assert e.param == next(iter(wrong)), e
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        raise SystemExit("a wrong key was taken")
    except openai.AuthenticationError:
        pass


def anthropic_client(url):
    client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
    ask = dict(model="m", max_tokens=12, extra_body={"temperature": 0}, system="Be short.", messages=[{"role": "user", "content": "Say hello."}])
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        assert text == whole.content[0].text == stream.get_final_message().content[0].text
    assert whole._request_id
    schema = {"format": {"type": "json_schema", "schema": SCHEMA}}
    got = client.messages.create(**ask | {"max_tokens": 60}, output_config=schema)
    assert 0 <= json.loads(got.content[0].text)["n"] <= 9
    counted = client.messages.count_tokens(**{k: ask[k] for k in ("model", "system", "messages")}).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    tools = [{"name": "look", "description": "Looks", "input_schema": SCHEMA}]
    with client.messages.stream(**ask | {"max_tokens": 100}, tools=tools, tool_choice={"type": "any", "disable_parallel_tool_use": True}) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use" and 0 <= message.content[0].input["n"] <= 9, message
    messages = ask["messages"] + [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": message.content[0].id, "content": "nothing"}]},
    ]
    assert client.messages.create(**ask | {"messages": messages}, tools=tools).content
    try:
        client.messages.create(**ask | {"model": "other"})
        raise SystemExit("another model was taken")
    except anthropic.NotFoundError as e:
        assert e.body["error"]["type"] == "not_found_error"


with serving(*sys.argv[1:3], "--api-key", "secret") as url:
    openai_client(url)
    print("openai", openai.__version__, "ok")
    anthropic_client(url)
    print("anthropic", anthropic.__version__, "ok")
