// The four headers that prove a request: HTTP Basic (RFC 7617), a digest (RFC 9530) and a signature (RFC 9421).

import { inUtf8, sha256, source, subtle, toBase64 } from './bytes.mjs'

/**
 * Makes the four headers that prove a request.
 * @param {object} request
 * @param {string} request.method in capitals
 * @param {string} request.path the path of the request target, as it will be sent, without a query
 * @param {Uint8Array | undefined} [request.body] the bytes that will be sent
 * @param {string} request.userId
 * @param {string} request.storageKey
 * @param {string} request.secret the app's secret. Its characters are the key, even if they look like hex or base64.
 * @param {string | undefined} [request.keyid] the one that came with the secret
 * @param {number} request.created the server's time, in whole Unix seconds
 * @returns {Promise<Record<'Authorization' | 'Content-Digest' | 'Signature-Input' | 'Signature', string>>}
 * @throws {RangeError} for a keyid that cannot be one
 */
export async function sign(request) {
  const { method, path, body = new Uint8Array(), userId, storageKey, secret, keyid = 'app', created } = request
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(keyid)) throw new RangeError('a keyid has 1 to 64 characters of A-Z a-z 0-9 _ -')
  const authorization = `Basic ${btoa(`${userId}:${storageKey}`)}`
  const digest = `sha-256=:${toBase64(await sha256(body))}:`
  const components = '("@method" "@path" "authorization" "content-digest")'
  const params = `${components};created=${created};keyid="${keyid}";alg="hmac-sha256"`
  const base = [
    `"@method": ${method}`,
    `"@path": ${path}`,
    `"authorization": ${authorization}`,
    `"content-digest": ${digest}`,
    `"@signature-params": ${params}`,
  ].join('\n')
  const key = await subtle.importKey('raw', source(inUtf8(secret)), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  const mac = toBase64(new Uint8Array(await subtle.sign('HMAC', key, source(inUtf8(base)))))
  return {
    Authorization: authorization,
    'Content-Digest': digest,
    'Signature-Input': `app=${params}`,
    Signature: `app=:${mac}:`,
  }
}
