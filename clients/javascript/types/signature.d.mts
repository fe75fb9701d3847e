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
export function sign(request: {
    method: string;
    path: string;
    body?: Uint8Array | undefined;
    userId: string;
    storageKey: string;
    secret: string;
    keyid?: string | undefined;
    created: number;
}): Promise<Record<"Authorization" | "Content-Digest" | "Signature-Input" | "Signature", string>>;
