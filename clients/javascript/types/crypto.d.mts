export * from "./blob.mjs";
export * from "./errors.mjs";
export * from "./keys.mjs";
export * from "./signature.mjs";
export { fromBase64, toBase64 } from "./bytes.mjs";
