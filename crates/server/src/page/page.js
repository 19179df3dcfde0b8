"use strict";
const $ = id => document.getElementById(id);
const settings = ["system", "temperature", "max-tokens"];
let messages = [];
let running = null;

/// What this tab had, so that reloading loses nothing. The key stays in the tab too.
function restore() {
  try {
    messages = JSON.parse(sessionStorage.getItem("messages")) || [];
    for (const id of [...settings, "key"]) $(id).value = sessionStorage.getItem(id) || "";
  } catch { messages = []; }
  $("log").replaceChildren();
  for (const message of messages) show(message);
}

function remember() {
  try {
    sessionStorage.setItem("messages", JSON.stringify(messages));
    for (const id of [...settings, "key"]) sessionStorage.setItem(id, $(id).value);
  } catch { /* a full or forbidden store: the conversation lives as long as the page */ }
}

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/// Adds a message to the log; returns how its parts are written.
function show(message) {
  const article = document.createElement("article");
  article.className = message.role;
  const thought = document.createElement("details"), thoughts = document.createElement("div"), summary = document.createElement("summary");
  summary.textContent = "Reasoning";
  thought.append(summary, thoughts);
  const text = document.createElement("div"), note = document.createElement("small");
  article.append(thought, text, note);
  $("log").append(article);
  const write = () => {
    thought.hidden = !message.reasoning;
    thoughts.textContent = message.reasoning || "";
    text.textContent = message.content;
    note.textContent = message.note || "";
    note.hidden = !message.note;
    article.scrollIntoView({ block: "end" });
  };
  write();
  return { article, write };
}

async function model() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await reason(response));
  $("model").textContent = (await response.json()).data[0].id;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/// The data of each event of a stream, whichever way it is cut into pieces.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function answer() {
  const request = {
    messages: messages.map(({ role, content }) => ({ role, content })),
    stream: true,
    stream_options: { include_usage: true },
  };
  const system = $("system").value.trim();
  if (system) request.messages.unshift({ role: "system", content: system });
  if ($("temperature").value) request.temperature = Number($("temperature").value);
  if ($("max-tokens").value) request.max_tokens = Number($("max-tokens").value);

  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  const message = { role: "assistant", content: "", reasoning: "" };
  const shown = show(message);
  const sent = performance.now();
  let first = 0, pieces = 0, tokens = 0;
  const rate = (count, now) => first && now > first && count > 1 ? `${((count - 1) * 1000 / (now - first)).toFixed(1)} tokens/s` : "";
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta;
      if (delta?.content || delta?.reasoning_content) {
        first ||= performance.now();
        pieces += 1;
        message.content += delta.content || "";
        message.reasoning += delta.reasoning_content || "";
        shown.write();
        $("status").textContent = rate(pieces, performance.now());
      }
      if (event.choices?.[0]?.finish_reason === "length") message.note = "cut at the longest answer · ";
      tokens = event.usage?.completion_tokens || tokens;
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped · ";
    else fail(error);
  }
  const count = tokens || pieces, speed = rate(count, performance.now());
  if (count) {
    message.note = `${message.note || ""}${count} tokens${speed && `, ${speed}`}, first after ${((first - sent) / 1000).toFixed(2)} s`;
    messages.push(message);
    shown.write();
  } else shown.article.remove();
  $("status").textContent = "";
  $("stop").hidden = true;
  $("send").hidden = false;
  running = null;
  remember();
}

function fail(error) {
  show({ role: "error", content: error.message });
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  const content = $("text").value.trim();
  if (!content || running) return;
  $("text").value = "";
  const message = { role: "user", content };
  messages.push(message);
  show(message);
  answer();
});
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  remember();
  restore();
  $("text").focus();
});
for (const id of settings) $(id).addEventListener("change", remember);
$("key").addEventListener("change", () => { remember(); model().catch(fail); });
restore();
model().catch(fail);
