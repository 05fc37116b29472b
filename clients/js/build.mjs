// Compiles `src` twice: by tsc to `build` (one module per file, for the tests) and
// `dist/types`, and by esbuild to the one file that ships, `dist/tidegate.js`.
// That file is committed, because the server embeds it and must build without
// Node: the same sources give the same bytes.
//
// node build.mjs              both
// node build.mjs --modules    only what the tests import
// node build.mjs FILE         only the bundle, to FILE
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const [only] = process.argv.slice(2);

if (only === undefined || only === "--modules") {
  for (const folder of ["build", "dist/types"]) rmSync(join(here, folder), { recursive: true, force: true });
  const typescript = dirname(createRequire(import.meta.url).resolve("typescript/package.json"));
  execFileSync(process.execPath, [join(typescript, "bin/tsc"), "-p", here], { stdio: "inherit" });
}

if (only !== "--modules") await build({
  absWorkingDir: here,
  entryPoints: ["src/index.ts"],
  outfile: only ?? join(here, "dist/tidegate.js"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  banner: { js: "/* tidegate, Apache-2.0, built from clients/js */" },
});
