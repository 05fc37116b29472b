// Starts a real server and a real Chromium for the tests of the demo page.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");

/** Where screenshots go. */
export const shots = join(target, "browser");
mkdirSync(shots, { recursive: true });

function binary() {
  const candidates = [process.env.TIDEGATE_BIN, join(target, "release/tidegate"), join(target, "debug/tidegate")];
  const found = candidates.find((path) => path && existsSync(path));
  if (!found) throw new Error("no tidegate binary: run `cargo build --release`, or set TIDEGATE_BIN");
  return found;
}

async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

/** `tidegate serve` with its embedded defaults, on ports of its own. */
export class Server {
  /** `settings`: environment variables of the configuration, beside the defaults. */
  static async create(settings = {}) {
    const server = new Server();
    server.settings = settings;
    // Its log of important events goes there, and outlives a restart.
    server.folder = await mkdtemp(join(tmpdir(), "tidegate-browser-"));
    server.port = await freePort();
    server.adminPort = await freePort();
    server.url = `http://127.0.0.1:${server.port}`;
    await server.start();
    return server;
  }

  async start() {
    this.log = "";
    this.child = spawn(binary(), ["serve"], {
      env: {
        ...process.env,
        TIDEGATE__SERVER__LISTEN: `127.0.0.1:${this.port}`,
        TIDEGATE__SERVER__ADMIN_LISTEN: `127.0.0.1:${this.adminPort}`,
        TIDEGATE__SERVER__RECONNECT_SPREAD_MS: "1000",
        ...this.settings,
      },
      cwd: this.folder,
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.on("data", (data) => {
        this.log = (this.log + data).slice(-20_000);
        if (String(data).includes("panicked")) this.panicked = true;
      });
    }
    this.stopping = false;
    this.exited = once(this.child, "exit").then(([code, signal]) => {
      if (!this.stopping) console.error(`the server ended by itself (${code ?? signal}):\n${this.log}`);
    });
    for (let tries = 0; tries < 100; tries += 1) {
      if (this.child.exitCode !== null) break;
      const answer = await fetch(`${this.url}/demo/session`).catch(() => null);
      if (answer?.ok) return;
      await new Promise((done) => setTimeout(done, 100));
    }
    throw new Error(`the server did not come up:\n${this.log}`);
  }

  /** The sum of a metric's series that begin so, as the operators' port tells them. */
  async metric(series) {
    const text = await (await fetch(`http://127.0.0.1:${this.adminPort}/metrics`)).text();
    const lines = text.split("\n").filter((line) => line.startsWith(series));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }

  async stop(signal = "SIGTERM") {
    this.stopping = true;
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill(signal);
    await this.exited;
  }

  async remove() {
    await this.stop();
    await rm(this.folder, { recursive: true, force: true });
    if (this.panicked) throw new Error(`the server panicked:\n${this.log}`);
  }
}

/**
 * Debian's Chromium; every launch gets an empty profile of its own. `quic` allows
 * WebTransport.
 */
export function openBrowser({ quic = false } = {}) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      ...(quic ? [] : ["--disable-quic"]),
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
