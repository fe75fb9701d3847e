// Builds the reference page: `npm ci && node build.mjs` writes dist/, which the server serves as it is.
//
// The name of a file contains the hash of its content, so that a browser may keep the file for ever. index.html contains
// these names, and a browser asks for it anew each time.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const here = new URL("./", import.meta.url);
const dist = new URL("dist/", here);
const bundles = new URL("node_modules/redoc/bundles/", here);

/** Returns the text of a file. */
function read(name, directory = here) {
  return readFileSync(new URL(name, directory), "utf8");
}

/** Writes dist/{stem}.{hash}{extension} and returns the path where the server serves it. */
function publish(name, content) {
  const hash = createHash("sha256").update(content).digest("hex").slice(0, 12);
  const published = name.replace(/\.\w+$/, `.${hash}$&`);
  writeFileSync(new URL(published, dist), content);
  return `/reference/${published}`;
}

/** Replaces the one match of a pattern in the renderer. Throws if there is not exactly one, as in another release. */
function replaceOnce(text, pattern, replacement) {
  const found = text.match(new RegExp(pattern, "g"))?.length ?? 0;
  if (found !== 1) throw new Error(`redoc must have this once, but has it ${found} times: ${pattern.source}`);
  return text.replace(pattern, replacement);
}

/** Returns a script with its licences (a file of comments) before it, and without its reference to a source map. */
function licensed(script, license) {
  return read(license, bundles) + script.replace(/^\/\/# sourceMappingURL=.*\n?/m, "");
}

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist);

let redoc = read("redoc.standalone.js", bundles);
// The search runs in a worker that is made from a string. The Content-Security-Policy forbids that, so the worker gets a
// file.
redoc = replaceOnce(redoc, /URL\.createObjectURL\(new Blob\(\[('(?:[^'\\]|\\.)*')\]\)\)/, (_, literal) => {
  const search = Function(`return ${literal}`)();
  const [license] = readdirSync(bundles).filter((name) => name.endsWith(".worker.js.LICENSE.txt"));
  return JSON.stringify(publish("search.js", licensed(search, license)));
});
// These rules are for a scrollbar that the page does not use. They would be an inline style.
redoc = replaceOnce(redoc, /\w+\.push\(\[e\.id,"\.ps\{(?:[^"\\]|\\.)*","",\{version:3.*?sourceRoot:""\}\]\)/, "0");
// The logo of the renderer's maker would be fetched from another host.
redoc = replaceOnce(redoc, /"https:\/\/cdn\.redoc\.ly\/[^"]*"/, '"data:,"');

const paths = {
  "redoc.js": publish("redoc.js", licensed(redoc, "redoc.standalone.js.LICENSE.txt")),
  "page.js": publish("page.js", read("page.js")),
  "page.css": publish("page.css", read("page.css")),
};
const index = read("index.html").replace(/\{\{(.*?)\}\}/g, (_, name) => paths[name]);
writeFileSync(new URL("index.html", dist), index);
