// What editors make of rule files, with the YAML language server as they run it: shipped and proposed files without a complaint, faults
// with one, completion and hover with the table's words. And SARIF, by its published schema and the reference validator.
//   node tests/editors/editors.mjs GUARDRAILD
import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import rpc from "vscode-jsonrpc/node";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
const guardraild = resolve(process.argv[2] ?? join(root, "target/release/guardraild"));
const require = createRequire(import.meta.url);

class Server {
  static async start() {
    const server = new Server();
    server.process = spawn(process.execPath, [join(here, "node_modules/yaml-language-server/bin/yaml-language-server"), "--stdio"]);
    server.connection = rpc.createMessageConnection(
      new rpc.StreamMessageReader(server.process.stdout),
      new rpc.StreamMessageWriter(server.process.stdin),
    );
    server.found = new Map();
    server.waiting = new Map();
    server.connection.onNotification("textDocument/publishDiagnostics", ({ uri, diagnostics }) => {
      server.found.set(uri, diagnostics);
      server.waiting.get(uri)?.(diagnostics);
    });
    const yaml = { validate: true, hover: true, completion: true, schemaStore: { enable: false }, schemas: {} };
    server.connection.onRequest("workspace/configuration", ({ items }) => items.map(({ section }) => (section === "yaml" ? yaml : {})));
    server.connection.onRequest("client/registerCapability", () => null);
    server.connection.listen();
    const document = { completion: { completionItem: { documentationFormat: ["markdown"] } }, hover: { contentFormat: ["markdown"] } };
    const capabilities = { textDocument: document, workspace: { configuration: true } };
    await server.connection.sendRequest("initialize", { processId: process.pid, rootUri: pathToFileURL(root).href, capabilities });
    server.connection.sendNotification("initialized", {});
    server.connection.sendNotification("workspace/didChangeConfiguration", { settings: { yaml } });
    return server;
  }

  /** Opens a file with this text; what the server says of it. */
  async open(path, text) {
    const uri = pathToFileURL(path).href;
    const told = new Promise((tell) => this.waiting.set(uri, tell));
    this.connection.sendNotification("textDocument/didOpen", { textDocument: { uri, languageId: "yaml", version: 1, text } });
    return { uri, diagnostics: await told };
  }

  ask(method, uri, text, mark) {
    const before = text.slice(0, text.indexOf(mark) + mark.length).split("\n");
    const position = { line: before.length - 1, character: before.at(-1).length };
    return this.connection.sendRequest(`textDocument/${method}`, { textDocument: { uri }, position });
  }

  stop() {
    this.connection.dispose();
    this.process.kill();
  }
}

const MODELINE = "# yaml-language-server: $schema=../config/schemas/rule.v1.schema.json\n";
const GOOD = `${MODELINE}guardrail: v1
overview: {experiment: example, owner: checkout}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - metric: error_rate
    max_increase: 0.5pp
actions: {mode: observe, rollback: {webhook: flag-service}}
`;
const BAD = [
  ["owner: checkout", "ownr: checkout", /ownr/],
  ["mode: observe", "mode: observed", /observe/],
  ["experiment: example, ", "", /experiment/],
  ["max_increase: 0.5pp", "max_increase: much", /pattern|match|number/i],
  ["baseline: true", "baseline: 7", /boolean/],
  ["guardrail: v1", "guardrail: v2", /v1/],
];

async function files(server) {
  const shipped = readdirSync(join(root, "rules")).filter((name) => name.endsWith(".yaml")).map((name) => join(root, "rules", name));
  const directory = mkdtempSync(join(tmpdir(), "guardraild-editors-"));
  execFileSync(guardraild, ["init", directory, "--experiment", "example"], { stdio: "ignore" });
  const proposed = readdirSync(join(directory, "rules")).map((name) => join(directory, "rules", name));
  proposed.push(join(directory, "guardraild.yaml"));
  shipped.push(join(root, "config/default.yaml"), join(root, "config/example.yaml"));
  for (const path of [...shipped, ...proposed]) {
    const text = readFileSync(path, "utf8");
    assert.match(text, /^# yaml-language-server: \$schema=/, `${path} names its schema`);
    const { diagnostics } = await server.open(path, text);
    assert.deepEqual(diagnostics.map((d) => d.message), [], path);
  }
  rmSync(directory, { recursive: true });
  return shipped.length + proposed.length;
}

const CONFIG = `# yaml-language-server: $schema=schemas/config.v1.schema.json
kafka: {brokers: ['kafka-1:9092'], workers: 2}
engine: {lateness: 1m}
endpoints:
  flags: {kind: webhook, url: https://flags.example/hook, secrets: [{file: flags.secret}]}
`;
const BAD_CONFIG = [
  ["brokers:", "brokerz:", /brokerz/],
  ["kafka-1:9092", "kafka-1", /pattern|match/i],
  ["workers: 2", "workers: two", /integer/],
  ["lateness: 1m", "lateness: 1 fortnight", /pattern|match|Value/i],
  ["{file: flags.secret}", "whsec_literal", /type|object/i],
  ["kind: webhook", "kind: webhok", /webhook/],
  [", secrets: [{file: flags.secret}]", "", /secrets/],
  ["url:", "routing_key: {env: KEY}, url:", /routing_key|false|not allowed/i],
];

async function faults(server, folder, whole, all) {
  assert.deepEqual((await server.open(join(root, folder, "good.yaml"), whole)).diagnostics.map((d) => d.message), []);
  for (const [i, [good, bad, expected]] of all.entries()) {
    const text = whole.replace(good, bad);
    assert.notEqual(text, whole);
    const { diagnostics } = await server.open(join(root, folder, `bad-${i}.yaml`), text);
    assert.ok(diagnostics.some((d) => expected.test(d.message)), `${bad}: ${JSON.stringify(diagnostics.map((d) => d.message))}`);
  }
}

async function help(server) {
  const text = GOOD.replace("    max_increase: 0.5pp\n", "    \n");
  const { uri } = await server.open(join(root, "rules/help.yaml"), text);
  const { items } = await server.ask("completion", uri, text, "error_rate\n    ");
  const limit = items.find((item) => item.label === "limit");
  assert.ok(limit && ["window", "max_increase", "for", "on_breach"].every((key) => items.some((item) => item.label === key)));
  assert.match(JSON.stringify(limit.documentation), /Absolute bound/);
  const shown = await server.open(join(root, "rules/hover.yaml"), GOOD);
  const hover = await server.ask("hover", shown.uri, GOOD, "    max_inc");
  assert.match(JSON.stringify(hover.contents), /Against the baseline bucket/);
  const words = GOOD.replace("mode: observe", "mode: ");
  const open = await server.open(join(root, "rules/words.yaml"), words);
  const modes = await server.ask("completion", open.uri, words, "mode: ");
  assert.ok(["observe", "enforce"].every((word) => modes.items.some((item) => item.label === word)), JSON.stringify(modes.items));
}

function sarif() {
  const checked = spawnSync(guardraild, ["check", "tests/bad_rules", "--format", "sarif"], { cwd: root, encoding: "utf8", maxBuffer: 1 << 26 });
  assert.equal(checked.status, 1, checked.stderr);
  const log = JSON.parse(checked.stdout);
  assert.ok(log.runs[0].results.length > 100);
  const tool = dirname(require.resolve("@microsoft/sarif-multitool-linux/package.json"));
  const Ajv = require("ajv/dist/2020").default;
  const ajv = new Ajv({ strict: false, allErrors: true });
  require("ajv-formats").default(ajv);
  const schema = JSON.parse(readFileSync(join(tool, "sarif-2.1.0.json"), "utf8"));
  const valid = ajv.compile(schema);
  assert.ok(valid(log), JSON.stringify(valid.errors?.slice(0, 5)));
  const directory = mkdtempSync(join(tmpdir(), "guardraild-sarif-"));
  const [from, to] = ["check.sarif", "report.sarif"].map((name) => join(directory, name));
  writeFileSync(from, checked.stdout);
  const program = join(tool, "Sarif.Multitool");
  chmodSync(program, 0o755);
  const environment = { ...process.env, DOTNET_SYSTEM_GLOBALIZATION_INVARIANT: "1" };
  const ran = spawnSync(program, ["validate", from, "--output", to, "--log", "ForceOverwrite"], { encoding: "utf8", env: environment });
  const errors = JSON.parse(readFileSync(to, "utf8")).runs[0].results.filter((r) => (r.level ?? "warning") === "error");
  assert.deepEqual(errors.map((r) => `${r.ruleId} ${r.message.text ?? r.message.id}`), [], ran.stdout);
  rmSync(directory, { recursive: true });
  return log.runs[0].results.length;
}

const server = await Server.start();
try {
  console.log(`${await files(server)} files without a complaint`);
  await faults(server, "rules", GOOD, BAD);
  await faults(server, "config", CONFIG, BAD_CONFIG);
  console.log(`${BAD.length + BAD_CONFIG.length} faults are told`);
  await help(server);
  console.log("completion and hover explain");
} finally {
  server.stop();
}
console.log(`${sarif()} results of SARIF are valid`);
