// An MCP server over standard input and output that notes each request in LOG, and that stops reading once there is the
// file LOG.deaf and it has listed its tools: what is sent to it after that fills the pipe.
import fs from "node:fs";

const log = process.env.LOG;
const answer = (id, result) => process.stdout.write(JSON.stringify({ jsonrpc: "2.0", id, result }) + "\n");
const tools = [{ name: "keep", inputSchema: { type: "object" }, annotations: { destructiveHint: false } }];

function handle({ id, method, params }) {
  if (id === undefined) return;
  if (method === "initialize") {
    const { protocolVersion } = params;
    answer(id, { protocolVersion, capabilities: { tools: {} }, serverInfo: { name: "deaf", version: "1" } });
  } else if (method === "tools/list") {
    answer(id, { tools });
    if (fs.existsSync(log + ".deaf")) {
      process.stdin.pause();
      fs.writeFileSync(log + ".stopped", "");
    }
  } else {
    fs.appendFileSync(log, JSON.stringify({ method, params }) + "\n");
    answer(id, { content: [{ type: "text", text: "kept" }] });
  }
}

let rest = "";
process.stdin.on("data", (part) => {
  const lines = (rest + part).split("\n");
  rest = lines.pop();
  for (const line of lines) if (line.trim()) handle(JSON.parse(line));
});
// It does not end by itself.
setInterval(() => {}, 1000);
