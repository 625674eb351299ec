// Writes viewer and trace, .js and .css each, and widget.js for notebooks, into the folder given: node build.mjs FOLDER

import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { build } from "esbuild";

const [folder] = process.argv.slice(2);
if (!folder) throw new Error("usage: node build.mjs FOLDER");

const options = {
  bundle: true,
  minify: true,
  target: "es2022",
  charset: "utf8",
  jsx: "automatic",
  jsxImportSource: "preact",
  alias: { "d3-transition": "./src/paths/still.ts", "d3-interpolate": "./src/paths/still.ts" },
  legalComments: "none",
  absWorkingDir: import.meta.dirname,
};

const page = { ...options, entryPoints: { viewer: "src/viewer.tsx", trace: "src/trace.tsx" }, format: "iife" };
// A page that is handed on is a copy of the libraries in it: their licences ask to be handed on as well.
const { metafile } = await build({ ...page, write: false, outdir: ".", metafile: true });
await build({ ...page, outdir: folder, banner: { js: await notices(metafile) } });
await build({ ...options, entryPoints: { widget: "src/widget.ts" }, format: "esm", outdir: folder });

async function notices({ outputs }) {
  const folders = new Set();
  for (const [file, { bytesInOutput }] of Object.values(outputs).flatMap(({ inputs }) => Object.entries(inputs))) {
    const folder = /^(.*node_modules\/[^/]+)\//.exec(file)?.[1];
    if (folder && bytesInOutput > 0) folders.add(folder);
  }
  const licences = new Map();
  for (const folder of [...folders].sort()) {
    const text = (await readFile(new URL(`${folder}/LICENSE`, import.meta.url), "utf8")).trim();
    licences.set(text, [...(licences.get(text) ?? []), basename(folder)]);
  }
  const sections = [...licences].map(([text, users]) => `${users.join(", ")}:\n${text}`);
  return `/*!\n${sections.join("\n\n")}\n*/`;
}
