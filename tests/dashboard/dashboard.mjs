// The dashboard in a real Chromium, on a daemon that reads live traffic: every view, live updates, a restart of the daemon, operators'
// writes, keyboard, phone, contrast, and what a thousand experiments weigh.
//   node dashboard.mjs GUARDRAILD LOAD_TESTS [IMAGES]     programs; and a folder that pictures of the views are written to
// With ASSETS=src/http/assets in the environment the page's files are read from there, so that the daemon need not be built again.
import { execFileSync, spawn } from "node:child_process";
import assert from "node:assert/strict";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const [guardraild, loadTests, images] = process.argv.slice(2);
const TOKEN = "stage-operate-token";
const AXE = fs.readFileSync(new URL("./node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const PATIENCE = 60_000;
const ended = [];

const port = () => new Promise((give) => {
  const server = net.createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => give(port));
  });
});

/** Traffic, receivers and files; the daemon comes and goes. */
class Stage {
  static async start(experiments) {
    const stage = new Stage();
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "guardraild-dashboard-"));
    stage.base = `http://127.0.0.1:${await port()}`;
    stage.play = spawn(loadTests, ["stage", "--dir", dir, "--experiments", String(experiments), "--http", stage.base.slice(7)], { stdio: ["pipe", "pipe", "inherit"] });
    stage.config = await new Promise((give) => stage.play.stdout.once("data", (line) => give(String(line).trim())));
    ended.push(async () => {
      await stage.stop();
      stage.play.stdin.end();
      fs.rmSync(dir, { recursive: true, force: true });
    });
    await stage.run();
    return stage;
  }

  async run() {
    const log = fs.openSync(path.join(path.dirname(this.config), "log"), "a");
    this.daemon = spawn(guardraild, ["run", "--config", this.config], { stdio: ["ignore", log, log] });
    this.gone = new Promise((give) => this.daemon.once("exit", give));
    // Alive is not enough: until it is the active one of its directory, all but its health is 503.
    await until("the daemon answers", async () => (await fetch(`${this.base}/api/v1/fleet`).catch(() => null))?.ok);
  }

  async stop() {
    this.daemon.kill("SIGTERM");
    await this.gone;
  }

  order(word) {
    this.play.stdin.write(`${word}\n`);
  }
}

async function until(what, holds) {
  const patience = Date.now() + PATIENCE;
  while (Date.now() < patience) {
    if (await holds()) return;
    await new Promise((wait) => setTimeout(wait, 50));
  }
  assert.fail(`not within ${PATIENCE / 1000} s: ${what}`);
}

/** A page that notes what must not be: errors, requests elsewhere, violations of the policy. */
async function open(browser, stage, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
  page.setDefaultTimeout(PATIENCE);
  const faults = (page.faults = []);
  page.away = false;
  page.bytes = 0;
  page.on("console", (message) => message.type() === "error" && !page.away && faults.push(`console: ${message.text()} (${message.location().url})`));
  page.on("pageerror", (error) => faults.push(`error: ${error.stack}`));
  page.on("request", (request) => !request.url().startsWith(stage.base) && faults.push(`request to ${request.url()}`));
  if (process.env.ASSETS) await page.route((url) => url.pathname === "/" || url.pathname.startsWith("/assets/"), fromDisk);
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`)));
  return page;
}

/** A file of the page as it is on the disk, under the headers that the daemon gives it. */
async function fromDisk(route) {
  const file = new URL(route.request().url()).pathname.slice(8) || "index.html";
  const response = await route.fetch().catch(() => null);
  if (!response) return route.abort();
  const contentType = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" }[file.split(".").pop()];
  const policy = response.headers()["content-security-policy"];
  return route.fulfill({ body: fs.readFileSync(path.join(process.env.ASSETS, file)), contentType, headers: policy ? { "content-security-policy": policy } : {} });
}

const go = async (page, stage, hash, wanted) => {
  await page.goto(`${stage.base}/${hash}`);
  await page.getByRole("heading", { level: 1, name: wanted }).waitFor();
  await page.locator("#pulse.on").waitFor();
};

/** What axe-core calls serious or critical, in light and dark, and whether a phone would scroll sideways. */
async function inspect(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const grave = violations.filter((v) => ["serious", "critical"].includes(v.impact));
    assert.deepEqual(grave.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`), [], `${name}, ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light" });
  const wide = page.viewportSize();
  await page.setViewportSize({ width: 360, height: 740 });
  const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(beyond, 0, `${name} scrolls sideways on a phone`);
  await page.setViewportSize(wide);
  assert.deepEqual(page.faults, [], name);
  console.log(`ok  ${name}`);
}

async function keyboard(page, stage) {
  await go(page, stage, "#/", "Experiments");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await page.keyboard.press("/");
  await page.keyboard.type("new-check");
  await until("the filter has narrowed the list", async () => (await page.locator(".fleet > li").count()) === 1);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "new-checkout");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "new-checkout" }).waitFor();
  console.log("ok  by keyboard alone from the fleet to an experiment");
}

/** A rollback shows up on an open page, and what follows it. */
async function rollback(page, stage) {
  await go(page, stage, "#/e/new-checkout", "new-checkout");
  await page.evaluate(() => (window.same = true));
  stage.order("slow");
  await page.locator(".banner.breach", { hasText: "was rolled back" }).waitFor();
  await page.locator(".banner.breach", { hasText: "Confirmed: exposures have stopped" }).waitFor();
  assert.equal(await page.evaluate(() => window.same), true, "without loading the page again");
  console.log("ok  a rollback and its confirmation appear by themselves");
  await page.getByRole("link", { name: "Numbers and deliveries" }).first().click();
  await page.getByText("rollback to flag-service").waitFor();
  await page.locator(".badge", { hasText: "delivered" }).first().waitFor();
  await inspect(page, "decision");
}

async function redeliver(page, stage) {
  const send = page.getByRole("button", { name: "Send again: guardrail.rollback to flag-service" });
  for (const [token, said] of [["wrong", "Not sent again"], [TOKEN, "Queued"]]) {
    await send.click();
    await page.getByLabel("Token with the role operate").fill(token);
    await inDialog(page);
    await page.getByRole("button", { name: "Use it" }).click();
    await page.locator("#said", { hasText: said }).waitFor();
    page.faults.splice(0); // Chromium itself logs the refused request.
  }
  assert.equal(await page.evaluate(() => Object.keys(sessionStorage).length + document.cookie.length), 0, "the token is kept nowhere");
  await page.locator(".tries li").nth(2).waitFor();
  console.log("ok  a delivery is sent again by an operator's token, and by no other");
  await go(page, stage, "#/deliveries", "Deliveries");
  await inspect(page, "deliveries");
}

const inDialog = async (page) => assert.equal(await page.evaluate(() => document.querySelector("dialog").contains(document.activeElement)), true, "the dialog has the focus");

async function rejects(page, stage) {
  stage.order("poison");
  await go(page, stage, "#/data", "Data");
  await page.getByText("refused: not json").waitFor();
  await page.getByRole("button", { name: "Show samples" }).click(); // The token has been given already.
  await page.getByRole("region", { name: "Refused records" }).waitFor();
  const text = await page.locator("main").innerText();
  assert.ok(!text.includes("secret") && !text.includes("onerror"), "what users sent is redacted");
  await inspect(page, "data");
}

/** A live rule that is loosened without a new revision stays as it was; the page says why, and what a reload would do. */
async function rules(page, stage) {
  const file = path.join(path.dirname(stage.config), "rules", "new-checkout.yaml");
  const text = fs.readFileSync(file, "utf8");
  await go(page, stage, "#/rules", "Rules");
  await page.locator(".badge", { hasText: "loaded" }).first().waitFor();
  fs.writeFileSync(file, text.replace("max_increase: 10%, limit: 900ms", "max_increase: 20%, limit: 900ms"));
  await page.locator(".badge", { hasText: "stale" }).waitFor();
  await page.getByRole("button", { name: "Compare with the disk" }).click();
  await page.getByRole("heading", { name: /new-checkout.yaml would be stale/ }).waitFor();
  page.faults.splice(0); // Chromium logs the 409 that says so.
  await inspect(page, "rules");
  fs.writeFileSync(file, text);
  await until("the file is in force again", async () => (await page.locator(".badge", { hasText: "stale" }).count()) === 0);
}

async function restart(page, stage) {
  await go(page, stage, "#/e/new-checkout", "new-checkout");
  page.away = true;
  await stage.stop();
  await page.locator("body.stale").waitFor();
  assert.match(await page.getByRole("alert").innerText(), /No word from the daemon: what is shown is \d+ s old/);
  await page.locator(".banner.breach").waitFor();
  await stage.run();
  await page.locator("body:not(.stale) #pulse.on").waitFor();
  await page.locator(".banner.breach", { hasText: "was rolled back" }).waitFor();
  page.away = false;
  page.faults.splice(0);
  console.log("ok  a restart of the daemon: stale meanwhile, then live again");
}

/** Bytes as they go over the wire, and the first paint, with a thousand experiments. */
async function thousand(browser) {
  const stage = await Stage.start(1000);
  const fleet = async () => (await fetch(`${stage.base}/api/v1/fleet`).then((answer) => answer.json())).experiments;
  await until("a thousand experiments are judged", async () => (await fleet()).filter((e) => e.judged_to).length === 1000);
  const page = await open(browser, stage);
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  let bytes = 0;
  session.on("Network.loadingFinished", (event) => (bytes += event.encodedDataLength));
  await go(page, stage, "#/", "Experiments");
  await page.locator(".fleet > li").nth(49).waitFor();
  const whole = bytes;
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
  const rows = await page.evaluate(() => performance.getEntriesByType("resource").find((e) => e.name.endsWith("/fleet")).responseEnd);
  console.log(`ok  1,000 experiments: ${Math.round(whole / 1024)} KiB in all, first paint after ${Math.round(paint)} ms, the fleet's rows there after ${Math.round(rows)} ms`);
  assert.ok(whole < 1_000_000, `${whole} bytes`);
  await page.getByLabel("Filter by name").fill("ranking-0777");
  await until("one is left", async () => (await page.locator(".fleet > li").count()) === 1);
  await inspect(page, "fleet of a thousand");
}

/** Pictures for the docs. */
async function picture(browser, stage, name, hash, heading, options) {
  if (!images) return;
  const page = await open(browser, stage, { viewport: { width: 1180, height: 780 }, reducedMotion: "reduce", ...options });
  await go(page, stage, hash, heading);
  await page.waitForLoadState("networkidle", { timeout: 3000 }).catch(() => {});
  await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
  await page.screenshot({ path: path.join(images, `${name}.png`) });
  await page.close();
}

async function main() {
  const executablePath = execFileSync("sh", ["-c", "command -v chromium || command -v chromium-browser || command -v google-chrome"], { encoding: "utf8" }).trim();
  const browser = await chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
  ended.push(() => browser.close());
  const stage = await Stage.start(6);
  const page = await open(browser, stage);
  await keyboard(page, stage);
  await until("there is an interval", async () => (await fetch(`${stage.base}/api/v1/experiments/new-checkout`).then((a) => a.json())).guardrails[0].interval);
  await go(page, stage, "#/", "Experiments");
  await inspect(page, "fleet");
  await go(page, stage, "#/e/new-checkout", "new-checkout");
  await page.locator('[data-chart="latency_p95/treatment"] canvas').waitFor();
  await inspect(page, "experiment");
  await go(page, stage, "#/e/new-checkout/latency_p95/treatment", "latency_p95 of treatment");
  await page.locator('[data-chart="evidence"] canvas').waitFor();
  await page.getByRole("img", { name: /^Histograms of/ }).waitFor();
  await inspect(page, "guardrail");
  await rollback(page, stage);
  await redeliver(page, stage);
  await go(page, stage, "#/d", "Decisions");
  await inspect(page, "decisions");
  await rejects(page, stage);
  await rules(page, stage);
  await picture(browser, stage, "fleet-light", "#/", "Experiments", { colorScheme: "light" });
  await picture(browser, stage, "experiment-dark", "#/e/new-checkout", "new-checkout", { colorScheme: "dark" });
  await picture(browser, stage, "guardrail-light", "#/e/new-checkout/latency_p95/treatment", "latency_p95 of treatment", { colorScheme: "light" });
  await picture(browser, stage, "phone-light", "#/e/new-checkout", "new-checkout", { colorScheme: "light", viewport: { width: 390, height: 780 } });
  await restart(page, stage);
  await thousand(browser);
}

try {
  await main();
} finally {
  for (const end of ended.reverse()) await end();
}
