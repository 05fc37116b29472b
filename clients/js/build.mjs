// Compiles `src` twice: by tsc to `build` (one module per file, for the tests) and
// `dist/types`, and by esbuild to the one file that ships, `dist/tidegate.js`.
// That file is committed, because the server embeds it and must build without
// Node: the same sources give the same bytes.
//
// Usage: node build.mjs [FILE]    writes the bundle to FILE instead.
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const outfile = process.argv[2] ?? join(here, "dist/tidegate.js");

if (process.argv[2] === undefined) {
  for (const folder of ["build", "dist/types"]) rmSync(join(here, folder), { recursive: true, force: true });
  const typescript = dirname(createRequire(import.meta.url).resolve("typescript/package.json"));
  execFileSync(process.execPath, [join(typescript, "bin/tsc"), "-p", here], { stdio: "inherit" });
}

await build({
  absWorkingDir: here,
  entryPoints: ["src/index.ts"],
  outfile,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  banner: { js: "/* tidegate, Apache-2.0, built from clients/js */" },
});
