// Keys, encryption and signing. This part knows nothing of HTTP: it needs Web Crypto and nothing else.

export * from './blob.mjs'
export { fromBase64, toBase64 } from './bytes.mjs'
export * from './errors.mjs'
export * from './keys.mjs'
export * from './signature.mjs'
