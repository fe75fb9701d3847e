// Lives a whole life with the client that hey-api generates from openapi.yaml into ./hey-api.
//
// It prints one line a step: the operation, and what the client decoded. test_generators.py says which lines it expects.

import { createHash, createHmac } from "node:crypto";

import * as api from "./hey-api";
import { client } from "./hey-api/client.gen";

const { TARGET_URL, TARGET_USER_ID, TARGET_STORAGE_KEY, TARGET_NEW_KEY, TARGET_KEYID, TARGET_SECRET } =
  process.env as Record<string, string>;

const now = (): number => Math.floor(Date.now() / 1000) - 3600; // this device's clock is an hour behind
let difference = 0;
let storageKey: string | undefined; // without it, requests go out without proofs
let etag: string | undefined;

/** Send a request with the four headers of "Two proofs", and with If-None-Match. */
async function send(request: Request): Promise<Response> {
  const body = Buffer.from(await request.arrayBuffer());
  const headers = new Headers(request.headers);
  if (etag) headers.set("If-None-Match", etag);
  if (storageKey) {
    const authorization = `Basic ${Buffer.from(`${TARGET_USER_ID}:${storageKey}`).toString("base64")}`;
    const digest = `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;
    const parameters =
      `("@method" "@path" "authorization" "content-digest");created=${now() + difference};` +
      `keyid="${TARGET_KEYID}";alg="hmac-sha256"`;
    const base = [
      `"@method": ${request.method}`,
      `"@path": ${new URL(request.url).pathname}`,
      `"authorization": ${authorization}`,
      `"content-digest": ${digest}`,
      `"@signature-params": ${parameters}`,
    ].join("\n");
    headers.set("Authorization", authorization);
    headers.set("Content-Digest", digest);
    headers.set("Signature-Input", `app=${parameters}`);
    headers.set("Signature", `app=:${createHmac("sha256", TARGET_SECRET!).update(base).digest("base64")}:`);
  }
  return fetch(request.url, { method: request.method, headers, ...(body.length ? { body } : {}) });
}

client.setConfig({ baseUrl: TARGET_URL!, fetch: (request) => send(request as Request) });

type Answer<Data> = { data?: Data; error?: unknown; response?: Response };

/** Return what a successful answer holds. */
function data<Data>({ data, error }: Answer<Data>): NonNullable<Data> {
  if (data == null) throw new Error(JSON.stringify(error));
  return data;
}

/** Return the problem that the answer is. */
function problem(answer: Answer<unknown>): api.Problem {
  if (!answer.error) throw new Error(`${answer.response?.status} is no problem`);
  return answer.error as api.Problem;
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const content = (backup: api.Backup): string => `${backup.version} ${sha256(Buffer.from(backup.data, "base64"))}`;

async function live(): Promise<void> {
  const first = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
  const second = Buffer.from(first).reverse();

  console.log("getHealth", data(await api.getHealth()).status);
  console.log("document", data(await api.getOpenapiJson()).openapi);
  console.log("fetchBackup", problem(await api.fetchBackup()).code);

  storageKey = TARGET_STORAGE_KEY;
  const expired = problem(await api.registerUser());
  console.log("registerUser", expired.code);
  difference = expired.serverTime! - now();
  console.log("registerUser", (await api.registerUser()).response?.status);

  console.log("fetchBackup", problem(await api.fetchBackup()).code);
  console.log("storeBackup", data(await api.storeBackup({ body: { data: first.toString("base64") } })).version);
  const fetched = await api.fetchBackup();
  console.log("fetchBackup", content(data(fetched)));
  etag = fetched.response?.headers.get("ETag") ?? undefined;
  console.log("fetchBackup", (await api.fetchBackup()).response?.status);
  etag = undefined;

  const upload = { data: second.toString("base64") };
  console.log("storeBackup", problem(await api.storeBackup({ body: upload })).code);
  const baseSha256 = data(fetched).sha256;
  const receipt = data(await api.storeBackup({ body: { ...upload, baseSha256 } }));
  console.log("storeBackup", receipt.version);
  console.log("listBackupVersions", ...data(await api.listBackupVersions()).versions.map(({ version }) => version));
  console.log("fetchBackupVersion", content(data(await api.fetchBackupVersion({ path: { version: 1 } }))));

  const change = { storageKey: TARGET_NEW_KEY!, data: first.toString("base64"), baseSha256: receipt.sha256 };
  const changed = data(await api.changeStorageKey({ body: change }));
  console.log("changeStorageKey", changed.version, changed.keyVersion);
  console.log("fetchBackup", problem(await api.fetchBackup()).code);
  storageKey = TARGET_NEW_KEY;
  console.log("fetchBackup", content(data(await api.fetchBackup())));

  console.log("deleteUser", (await api.deleteUser()).response?.status);
  console.log("fetchBackup", problem(await api.fetchBackup()).code);
}

void live();
