// What ships: the size that is promised, the bytes that are committed, the files of
// the package, and types that a strict program takes.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = join(dirname(fileURLToPath(import.meta.url)), "..");
const folder = mkdtempSync(join(tmpdir(), "tidegate-js-"));
after(() => rmSync(folder, { recursive: true, force: true }));
const MOST = 15 * 1024;

describe("the package", () => {
  test(`is less than ${MOST} bytes, compressed`, (t) => {
    const { length } = gzipSync(readFileSync(join(here, "dist/tidegate.js")), { level: 9 });
    t.diagnostic(`${length} bytes`);
    assert.ok(length < MOST, `${length} bytes`);
  });

  test("is committed as the sources make it", () => {
    const again = join(folder, "again.js");
    execFileSync(process.execPath, [join(here, "build.mjs"), again]);
    const committed = readFileSync(join(here, "dist/tidegate.js"));
    assert.ok(readFileSync(again).equals(committed), "dist/tidegate.js is stale: node build.mjs, and commit it");
  });

  test("has no dependency, and holds what is needed and nothing else", () => {
    const manifest = JSON.parse(readFileSync(join(here, "package.json")));
    assert.deepEqual([manifest.dependencies, manifest.peerDependencies, manifest.license], [undefined, undefined, "Apache-2.0"]);
    const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: here, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const report = JSON.parse(listed);
    const { files } = Array.isArray(report) ? report[0] : Object.values(report)[0];
    const names = files.map(({ path }) => path).filter((path) => !path.startsWith("dist/types/")).sort();
    assert.deepEqual(names, ["README.md", "dist/tidegate.js", "package.json"]);
    assert.ok(files.some(({ path }) => path === "dist/types/index.d.ts"));
    assert.ok(files.every(({ path }) => !path.startsWith("dist/types/") || path.endsWith(".d.ts")));
  });

  test("its types are taken by a strict program, and refuse a wrong one", () => {
    const program = `
import { connect, Rejected, type RoomEvent } from "${join(here, "dist/types/index.js")}";
const client = connect({ url: "https://live.example.com", transports: ["websocket"] });
client.on("open", (transport, session) => console.log(transport === "websocket", session.length));
const room = client.join("r", { token: async () => "t", onEvent: (event: RoomEvent) => console.log(event.important?.toFixed()) });
room.publish("chat", { text: "hi" }, { amount: 1 }).then(({ seq }) => seq?.toFixed(), (failure) => {
  if (failure instanceof Rejected) console.log(failure.code, failure.retryAfterMs);
});
// @ts-expect-error a room needs a token
client.join("s", {});
// @ts-expect-error there is no such event
client.on("opened", () => undefined);
`;
    writeFileSync(join(folder, "program.mts"), program);
    const typescript = join(here, "node_modules/typescript/bin/tsc");
    const options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext", "--lib", "es2022,dom", "--types", "", join(folder, "program.mts")];
    const run = spawnSync(process.execPath, [typescript, ...options], { cwd: folder, encoding: "utf8" });
    assert.equal(run.status, 0, run.stdout);
  });
});
