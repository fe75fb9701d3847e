// Draws the reference from the openapi.json of the server that sent this page.

"use strict";

const container = document.getElementById("reference");
const proportional = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif";
const monospace = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

const options = {
  downloadUrls: [
    { title: "openapi.yaml", url: "/openapi.yaml" },
    { title: "openapi.json", url: "/openapi.json" },
  ],
  expandResponses: "200,201",
  jsonSamplesExpandLevel: "all",
  nativeScrollbars: true,
  pathInMiddlePanel: true,
  requiredPropsFirst: true,
  sanitize: true,
  sideNavStyle: "id-only",
  theme: {
    breakpoints: { medium: "70rem" },
    colors: { primary: { main: "#0b5c58" }, text: { primary: "#1f2933" } },
    spacing: { sectionVertical: 12, sectionHorizontal: window.matchMedia("(max-width: 50rem)").matches ? 20 : 40 },
    typography: {
      fontFamily: proportional,
      fontSize: "16px",
      lineHeight: "1.6",
      headings: { fontFamily: proportional, fontWeight: "600" },
      code: { fontFamily: monospace, fontSize: "14px", color: "#0b5c58", backgroundColor: "#eef3f3" },
    },
    sidebar: { width: "270px", backgroundColor: "#f4f7f7" },
    rightPanel: { backgroundColor: "#22313a" },
  },
};

/**
 * Adds each operationId to the description of its operation, so that the search finds it. Links to the operation
 * wherever the prose names it.
 */
function withOperationIds(document) {
  const places = new Map();
  for (const item of Object.values(document.paths)) {
    for (const operation of Object.values(item).filter(({ operationId }) => operationId)) {
      const { operationId, tags, description } = operation;
      places.set(operationId, `#tag/${tags[0]}/operation/${operationId}`);
      operation.description = `operationId: \`${operationId}\`\n\n${description}`;
    }
  }
  const linked = (code, name) => (places.has(name) ? `[${code}](${places.get(name)})` : code);
  document.info.description = document.info.description.replace(/`(\w+)`/g, linked);
  return document;
}

async function show() {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  Redoc.init(withOperationIds(await response.json()), options, container);
}

show().catch((error) => {
  container.textContent = `Cannot read openapi.json: ${error.message}`;
});
