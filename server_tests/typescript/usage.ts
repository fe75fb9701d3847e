// What an app in TypeScript does with the types that openapi-typescript makes from openapi.yaml, in ./openapi.
// The test compiles this file and does not run it. If a request or an answer changes its form, it no longer compiles.

import type { components, operations, paths } from "./openapi";

type Schemas = components["schemas"];
type Id = keyof operations;

// The body of an operation's answer with this status, in any media type.
type Answer<Operation extends Id, Status extends keyof operations[Operation]["responses"]> =
  operations[Operation]["responses"][Status] extends { content: infer Content } ? Content[keyof Content] : undefined;

type Success =
  | { id: "registerUser"; status: 200 | 201; body: Answer<"registerUser", 200 | 201> }
  | { id: "storeBackup"; status: 200 | 201; body: Answer<"storeBackup", 200 | 201> }
  | { id: "fetchBackup"; status: 200; body: Answer<"fetchBackup", 200> }
  | { id: "fetchBackup"; status: 304; body: Answer<"fetchBackup", 304> }
  | { id: "listBackupVersions"; status: 200; body: Answer<"listBackupVersions", 200> }
  | { id: "fetchBackupVersion"; status: 200; body: Answer<"fetchBackupVersion", 200> }
  | { id: "fetchBackupVersion"; status: 304; body: Answer<"fetchBackupVersion", 304> }
  | { id: "changeStorageKey"; status: 200; body: Answer<"changeStorageKey", 200> }
  | { id: "deleteUser"; status: 204; body: Answer<"deleteUser", 204> }
  | { id: "getHealth"; status: 200; body: Answer<"getHealth", 200> }
  | { id: "getAdminStats"; status: 200; body: Answer<"getAdminStats", 200> }
  | { id: "getOpenapiYaml"; status: 200; body: Answer<"getOpenapiYaml", 200> }
  | { id: "getOpenapiJson"; status: 200; body: Answer<"getOpenapiJson", 200> };

// ---- Requests ----------------------------------------------------------------------------------------------

type Upload = NonNullable<operations["storeBackup"]["requestBody"]>["content"]["application/json"];
type Change = NonNullable<operations["changeStorageKey"]["requestBody"]>["content"]["application/json"];

export const first: Upload = { data: "AA==" };
export const next: Upload = { data: "AA==", baseSha256: "00" };
export const change: Change = { storageKey: "00", data: "AA==", baseSha256: "00" };
export const version: operations["fetchBackupVersion"]["parameters"]["path"] = { version: 1 };

// @ts-expect-error data is required
export const withoutData: Upload = { baseSha256: "00" };
// @ts-expect-error leave out the base; null is not allowed
export const withNull: Upload = { data: "AA==", baseSha256: null };
// @ts-expect-error there is no such member
export const withMore: Upload = { data: "AA==", comment: "" };
// @ts-expect-error the new key is required
export const withoutKey: Change = { data: "AA==" };

// No other operation takes a body, and no operation takes a header or a query.
type Takes<Part extends string> = { [K in Id]: operations[K] extends { [P in Part]?: never } ? never : K }[Id];
type TakesParameter<In extends string> = {
  [K in Id]: operations[K]["parameters"] extends { [P in In]?: never } ? never : K;
}[Id];
type Same<A, B> = [A, B] extends [B, A] ? true : false;
export const bodies: Same<Takes<"requestBody">, "storeBackup" | "changeStorageKey"> = true;
export const headers: Same<TakesParameter<"header" | "query" | "cookie">, never> = true;
export const inPath: Same<TakesParameter<"path">, "fetchBackupVersion"> = true;

// Each operation is at its path. If one is missing or new, this does not compile.
type Routes = {
  registerUser: paths["/api/register"]["post"];
  storeBackup: paths["/api/backup"]["post"];
  fetchBackup: paths["/api/backup"]["get"];
  listBackupVersions: paths["/api/backup/versions"]["get"];
  fetchBackupVersion: paths["/api/backup/versions/{version}"]["get"];
  changeStorageKey: paths["/api/user/storage-key"]["put"];
  deleteUser: paths["/api/user"]["delete"];
  getHealth: paths["/health"]["get"];
  getAdminStats: paths["/admin/stats"]["get"];
  getOpenapiYaml: paths["/openapi.yaml"]["get"];
  getOpenapiJson: paths["/openapi.json"]["get"];
};
export const routes: Same<Routes, operations> = true;

// ---- Answers -----------------------------------------------------------------------------------------------

const receipt = ({ version, updatedAt, size, sha256, keyVersion }: Schemas["Receipt"]): string =>
  `${version.toFixed()} of ${new Date(updatedAt).toISOString()}, ${size.toFixed()} bytes ${sha256.trim()}, ` +
  `under key ${keyVersion.toFixed()}`;

export function tell(answer: Success): string {
  switch (answer.id) {
    case "registerUser":
      return `registered at ${answer.body.createdAt.trim()}`;
    case "storeBackup":
    case "changeStorageKey":
      return `stored version ${receipt(answer.body)}`;
    case "fetchBackup":
    case "fetchBackupVersion":
      return answer.status === 304 ? "nothing new" : `${atob(answer.body.data).length} of ${receipt(answer.body)}`;
    case "listBackupVersions":
      return answer.body.versions.map(receipt).join("\n");
    case "deleteUser":
      return `deleted ${answer.body satisfies undefined}`;
    case "getHealth":
      return `${answer.body.status.trim()} ${answer.body.version.trim()}`;
    case "getAdminStats":
      return (["users", "backups", "versions", "databaseBytes", "freeBytes", "damaged"] as const)
        .map((name) => `${name} ${answer.body[name].toFixed()}`)
        .concat(answer.body.version.trim(), answer.body.revision?.trim() ?? "no revision")
        .join();
    case "getOpenapiYaml":
    case "getOpenapiJson":
      return `${answer.body.openapi.trim()} ${Object.keys(answer.body.paths)} ${Object.keys(answer.body.info)}`;
    default:
      return answer satisfies never; // an operation that this file forgets does not compile
  }
}

export const told: Same<Success["id"], Id> = true;

// Whatever the operation and the status, a problem is a Problem.
type Failure<Operation extends Id> = Exclude<keyof operations[Operation]["responses"], 200 | 201 | 204 | 304>;
type FailureBody<Operation extends Id> = Answer<Operation, Failure<Operation>>;
export const problems: Same<{ [K in Id]: FailureBody<K> }[Id], Schemas["Problem"]> = true;

export function advise(problem: Schemas["Problem"], status: number): string {
  switch (problem.code) {
    case "signature_expired":
      return `correct the clock to ${problem.serverTime?.toFixed()}`;
    case "version_conflict":
      return `fetch version ${problem.currentVersion?.toFixed()} and merge`;
    case "validation_failed":
      return (problem.errors ?? []).map(({ pointer, detail }) => `${pointer.trim()} ${detail.trim()}`).join();
    default: // new codes may come
      return `${status} ${problem.code.trim()}: ${problem.title.trim()}, ${problem.detail.trim()} (${problem.type.trim()})`;
  }
}

export const newCode: Schemas["ProblemCode"] = "a_code_that_is_not_known_yet";
// @ts-expect-error code is required
export const withoutCode: Schemas["Problem"] = { type: "", title: "", status: 400, detail: "" };
