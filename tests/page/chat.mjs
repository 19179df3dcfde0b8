// The page at `/` in a real Chromium: loads under its strict policy, streams an answer, stops one, keeps the conversation over
// a reload, asks for the key.
//
//   node chat.mjs FERRUM MODEL [CHROMIUM]
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chromium } from "playwright-core";

const [ferrum, model, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);

async function serve(...flags) {
  const server = spawn(ferrum, ["serve", model, "--port", "0", "--backend", "cpu", "--ctx", "256", ...flags], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  // Returning closes the pipe of the log, which the server must survive.
  for await (const piece of server.stderr) {
    log += piece;
    const url = log.match(/listening on (http:\S+?)(\x1b|\s)/)?.[1];
    if (url && log.includes("ready")) return { server, url };
  }
  throw new Error(`the server ended: ${log}`);
}

async function open(browser, url) {
  const page = await browser.newPage();
  const wrong = [];
  page.on("pageerror", error => wrong.push(String(error)));
  page.on("console", message => message.type() === "error" && wrong.push(message.text()));
  page.on("request", request => new URL(request.url()).origin === url || request.url().startsWith("data:") || wrong.push(`asked ${request.url()}`));
  await page.goto(url);
  return { page, wrong };
}

async function send(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.keyboard.press("Enter");
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  {
    const { server, url } = await serve("--served-model-name", "tiny");
    const { page, wrong } = await open(browser, url);
    await page.getByText("tiny", { exact: true }).waitFor();

    await page.getByText("Settings").click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Longest answer, tokens").fill("24");
    await send(page, "the quick brown fox");
    const note = page.locator("article.assistant small").first();
    await page.waitForFunction(() => /\d+ tokens.*first after/.test(document.querySelector("article.assistant small")?.textContent));
    assert.match(await note.textContent(), /24 tokens, [\d.]+ tokens\/s, first after [\d.]+ s/);
    const shown = await page.locator("article.assistant > div").first().textContent();
    const whole = await (await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: [{ role: "user", content: "the quick brown fox" }], temperature: 0, max_tokens: 24 }),
    })).json();
    assert.equal(shown, whole.choices[0].message.content);

    // A reload keeps what was said, and markup of an answer or a question stays text.
    await send(page, "<img src=x onerror=alert(1)>");
    await page.waitForFunction(() => document.querySelectorAll("article.assistant small:not([hidden])").length === 2);
    await page.reload();
    assert.equal(await page.locator("article").count(), 4);
    assert.equal(await page.locator("article img").count(), 0);
    await page.getByRole("button", { name: "New conversation" }).click();
    assert.equal(await page.locator("article").count(), 0);

    // Stopping ends the request at the server too.
    await page.getByLabel("Longest answer, tokens").evaluate(input => { input.value = ""; });
    await send(page, "go on");
    await page.locator("article.assistant > div").first().filter({ hasText: /./ }).waitFor();
    const stop = page.getByRole("button", { name: "Stop" });
    if (await stop.isVisible()) await stop.click({ timeout: 1000 }).catch(() => {});
    await page.getByRole("button", { name: "Send" }).waitFor();
    const metrics = await (await fetch(`${url}/metrics`)).text();
    assert.match(metrics, /vllm:num_requests_running\S* 0/);
    assert.deepEqual(wrong, []);
    server.kill("SIGTERM");
    assert.deepEqual(await once(server, "exit"), [0, null]);
  }
  {
    const { server, url } = await serve("--api-key", "secret");
    const { page } = await open(browser, url);
    await page.locator("article.error").waitFor();
    await page.getByText("Settings").click();
    await page.getByLabel("API key").fill("secret");
    await page.getByLabel("API key").blur();
    await page.waitForFunction(() => document.getElementById("model").textContent !== "…");
    server.kill("SIGTERM");
  }
  console.log("page: ok");
} finally {
  await browser.close();
}
