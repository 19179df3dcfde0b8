// OpenAI's JavaScript client and Vercel's AI SDK against a server.
//
//     node sdk.mjs FERRUM MODEL     (an instruct model whose template takes tools)

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [ferrum, model] = process.argv.slice(2);
const server = spawn(ferrum, ["serve", model, "--port", "0", "--backend", "cpu", "--ctx", "1024", "--served-model-name", "m", "--api-key", "secret"], {
  stdio: ["ignore", "inherit", "pipe"],
});
const schema = z.strictObject({ n: z.int().min(0).max(9) });
const inRange = ({ n }) => assert(Number.isInteger(n) && n >= 0 && n <= 9, `${n}`);

async function openai(baseURL) {
  const client = new OpenAI({ baseURL, apiKey: "secret", maxRetries: 0 });
  const ask = { model: "m", messages: [{ role: "user", content: "Say hello." }], temperature: 0, max_tokens: 12 };
  const whole = await client.chat.completions.create(ask);
  const stream = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  assert.equal(await stream.finalContent(), whole.choices[0].message.content);
  assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);
  const parsed = await client.chat.completions.parse({ ...ask, max_tokens: 60, response_format: zodResponseFormat(schema, "s") });
  inRange(parsed.choices[0].message.parsed);

  // A tool that runs here, and the model's answer to its result.
  let looked = 0;
  const look = { name: "look", description: "Looks", parameters: z.toJSONSchema(schema), parse: JSON.parse, function: (at) => (inRange(at), (looked += 1), "nothing") };
  const runner = client.chat.completions.runTools({ ...ask, max_tokens: 100, tool_choice: { type: "function", function: { name: "look" } }, tools: [{ type: "function", function: look }] });
  await runner.done();
  assert.equal(looked, 1);

  assert((await client.completions.create({ model: "m", prompt: "one two three", max_tokens: 4 })).choices[0].text);
  // Which this client asks for in base64.
  const { data } = await client.embeddings.create({ model: "m", input: ["a cat", "a dog"] });
  assert(data.length === 2 && Math.abs(data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);

  const input = { model: "m", input: "Say hello.", temperature: 0, max_output_tokens: 12 };
  const response = await client.responses.create(input);
  const events = client.responses.stream(input);
  let text = "";
  events.on("response.output_text.delta", ({ delta }) => (text += delta));
  assert.equal((await events.finalResponse()).output_text, response.output_text);
  assert.equal(text, response.output_text);
  const answer = await client.responses.parse({ ...input, max_output_tokens: 60, text: { format: zodTextFormat(schema, "s") } });
  inRange(answer.output_parsed);
  await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
}

async function ai(model) {
  const ask = { model, prompt: "Say hello.", temperature: 0, maxOutputTokens: 12, maxRetries: 0 };
  const whole = await generateText(ask);
  const stream = streamText(ask);
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  const { inputTokens, outputTokens } = await stream.usage;
  assert.deepEqual([inputTokens, outputTokens], [whole.usage.inputTokens, whole.usage.outputTokens]);

  const longer = { ...ask, maxOutputTokens: 60 };
  inRange((await generateObject({ ...longer, schema })).object);
  inRange((await generateText({ ...longer, output: Output.object({ schema }) })).output);
  const object = streamObject({ ...longer, schema });
  for await (const part of object.partialObjectStream) assert(typeof part === "object");
  inRange(await object.object);

  const looked = [];
  const look = tool({ description: "Looks", inputSchema: schema, execute: async (at) => (looked.push(at), "nothing") });
  // The first step must call the tool, the second answers.
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
  const tools = { ...longer, tools: { look }, prepareStep, stopWhen: stepCountIs(2) };
  assert.equal((await generateText(tools)).steps.length, 2);
  const steps = streamText(tools);
  await steps.consumeStream();
  assert.equal((await steps.steps).length, 2);
  assert(looked.length >= 2);
  looked.forEach(inRange);
}

let url;
for await (const line of createInterface({ input: server.stderr })) {
  url ??= line.match(/listening on (http:\/\/[\d.:]+)/)?.[1];
  if (line.includes("ready")) break;
}
// A log that nobody reads would fill its pipe.
server.stderr.resume();
globalThis.AI_SDK_LOG_WARNINGS = false;
try {
  const settings = { baseURL: `${url}/v1`, apiKey: "secret", name: "ferrum" };
  await openai(settings.baseURL);
  console.log("npm openai ok");
  const compatible = createOpenAICompatible({ ...settings, includeUsage: true, supportsStructuredOutputs: true });
  await ai(compatible("m"));
  const { embeddings } = await embedMany({ model: compatible.embeddingModel("m"), values: ["a cat", "a dog"] });
  assert(embeddings.length === 2 && Math.abs(embeddings[0].reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
  console.log("npm ai, @ai-sdk/openai-compatible ok");
  // Whose models speak to /v1/responses, or to /v1/chat/completions as `.chat`.
  await ai(createOpenAI(settings)("m"));
  await ai(createOpenAI(settings).chat("m"));
  // It names what it takes to be stored, unless it is told that nothing is.
  const turn = { model: createOpenAI(settings)("m"), temperature: 0, maxOutputTokens: 8, maxRetries: 0 };
  const asked = { role: "user", content: "Say hello." };
  const messages = [asked, ...(await generateText({ ...turn, messages: [asked] })).response.messages, { role: "user", content: "Again." }];
  assert((await generateText({ ...turn, messages, providerOptions: { openai: { store: false } } })).text);
  await assert.rejects(generateText({ ...turn, messages }), (e) => e.message.includes("store: false"));
  console.log("npm ai, @ai-sdk/openai ok");
} finally {
  const ended = once(server, "exit");
  server.kill("SIGTERM");
  assert.equal((await ended)[0], 0);
}
