// Builds the reference page: `npm ci && node build.mjs` writes dist/, which the server serves as it is.
//
// A file is named by the hash of its content, so that a browser may keep it for ever; index.html, which it asks for
// anew each time, holds these names.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const here = new URL("./", import.meta.url);
const dist = new URL("dist/", here);
const bundles = new URL("node_modules/redoc/bundles/", here);

/** Returns the text of a file. */
function read(name, directory = here) {
  return readFileSync(new URL(name, directory), "utf8");
}

/** Writes dist/{stem}.{hash}{extension} and returns the path that the server serves it at. */
function publish(name, content) {
  const hash = createHash("sha256").update(content).digest("hex").slice(0, 12);
  const published = name.replace(/\.\w+$/, `.${hash}$&`);
  writeFileSync(new URL(published, dist), content);
  return `/reference/${published}`;
}

/** Replaces what a pattern finds in the renderer exactly once; in another release it may find nothing. */
function replaceOnce(text, pattern, replacement) {
  const found = text.match(new RegExp(pattern, "g"))?.length ?? 0;
  if (found !== 1) throw new Error(`redoc has this ${found} times, not once: ${pattern.source}`);
  return text.replace(pattern, replacement);
}

/** Puts a script's licences, which are a file of comments, before it, and leaves out its reference to a source map. */
function licensed(script, license) {
  return read(license, bundles) + script.replace(/^\/\/# sourceMappingURL=.*\n?/m, "");
}

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist);

let redoc = read("redoc.standalone.js", bundles);
// The search runs in a worker made from a string, which the Content-Security-Policy forbids: it gets a file.
redoc = replaceOnce(redoc, /URL\.createObjectURL\(new Blob\(\[('(?:[^'\\]|\\.)*')\]\)\)/, (_, literal) => {
  const search = Function(`return ${literal}`)();
  const [license] = readdirSync(bundles).filter((name) => name.endsWith(".worker.js.LICENSE.txt"));
  return JSON.stringify(publish("search.js", licensed(search, license)));
});
// The rules of a scrollbar that the page does not use would be an inline style.
redoc = replaceOnce(redoc, /\w+\.push\(\[e\.id,"\.ps\{(?:[^"\\]|\\.)*","",\{version:3.*?sourceRoot:""\}\]\)/, "0");
// The logo of its maker is fetched from another host.
redoc = replaceOnce(redoc, /"https:\/\/cdn\.redoc\.ly\/[^"]*"/, '"data:,"');

const paths = {
  "redoc.js": publish("redoc.js", licensed(redoc, "redoc.standalone.js.LICENSE.txt")),
  "page.js": publish("page.js", read("page.js")),
  "page.css": publish("page.css", read("page.css")),
};
const index = read("index.html").replace(/\{\{(.*?)\}\}/g, (_, name) => paths[name]);
writeFileSync(new URL("index.html", dist), index);
