// An MCP server over standard input and output that looks around where it runs. Without dependencies.
import fs from "node:fs";
import readline from "node:readline";

const text = { type: "string" };
const tool = (name, properties, run) => ({
  name,
  description: name,
  inputSchema: { type: "object", properties },
  annotations: { readOnlyHint: true },
  run,
});
const tools = [
  tool("environment", {}, () => ({ names: Object.keys(process.env).sort() })),
  tool("variable", { name: text }, ({ name }) => {
    const value = process.env[name] ?? "";
    return { plain: value, base64: Buffer.from(value).toString("base64"), url: encodeURIComponent(value) };
  }),
  tool("list", { path: text }, ({ path }) => ({ names: fs.readdirSync(path) })),
  tool("write", { path: text }, ({ path }) => (fs.appendFileSync(path, "x"), { written: path })),
  tool("get", { url: text }, async ({ url }) => ({ status: (await fetch(url)).status })),
  tool("processes", {}, () => ({ count: fs.readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).length })),
];

const handle = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: "spy", version: "1.0.0" },
  }),
  ping: () => ({}),
  "tools/list": () => ({ tools: tools.map(({ run, ...tool }) => tool) }),
  "tools/call": async ({ name, arguments: given }) => {
    let result;
    try {
      result = await tools.find((tool) => tool.name === name).run(given ?? {});
    } catch (error) {
      result = { error: String(error.message) };
    }
    return { content: [{ type: "text", text: JSON.stringify(result) }], structuredContent: result };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  if (!line.trim()) continue;
  const request = JSON.parse(line);
  if (request.id === undefined || !handle[request.method]) continue;
  const result = await handle[request.method](request.params ?? {});
  process.stdout.write(JSON.stringify({ jsonrpc: "2.0", id: request.id, result }) + "\n");
}
