// An authorization server: the client credentials grant, revocation and
// introspection of oidc-provider, with tokens of the lifetime given. It prints a
// line once it listens, and ends with its standard input. What it has issued it
// forgets when it ends; its clients are configured, and so are not.
//
// It knows the client "gateway", whose secret is in the environment variable
// CLIENT_SECRET, or what the file named by CONFIG has instead, in JSON:
//
//   clients  those that it knows
//   tls      { cert, key, ca } in PEM: it serves https, asks for a certificate of
//            the client, and trusts those that ca has issued
//   required whether it hangs up without a certificate that it trusts
//   clock    seconds by which its clock is ahead
//
// Usage: node server.mjs <port> <lifetime in seconds>

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createServer as createSecureServer } from 'node:https'
import { Provider } from 'oidc-provider'

const [port, lifetime, ...rest] = process.argv.slice(2).map(Number)
assert(port && lifetime && rest.length === 0, 'usage: node server.mjs <port> <lifetime in seconds>')

process.stdin.on('end', () => process.exit()).resume()

const config = process.env.CONFIG ? JSON.parse(readFileSync(process.env.CONFIG)) : {
  clients: [{ client_id: 'gateway', client_secret: process.env.CLIENT_SECRET }],
}

if (config.clock) {
  const now = Date.now
  Date.now = () => now() + config.clock * 1000
}

const certificate = (ctx) => ctx.socket.getPeerX509Certificate?.()

const provider = new Provider(`${config.tls ? 'https' : 'http'}://127.0.0.1:${port}`, {
  clients: config.clients.map((client) => ({
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    ...client,
  })),
  clientAuthMethods: [
    'client_secret_basic', 'client_secret_post', 'private_key_jwt',
    ...(config.tls ? ['tls_client_auth', 'self_signed_tls_client_auth'] : []),
  ],
  enabledJWA: { clientAuthSigningAlgValues: ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA'] },
  // no keys, which it would warn about: tokens are opaque, and nobody logs in
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true },
    mTLS: {
      enabled: Boolean(config.tls),
      tlsClientAuth: true,
      selfSignedTlsClientAuth: true,
      getCertificate: certificate,
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches(ctx, property, expected) {
        assert.equal(property, 'tls_client_auth_san_dns')
        return certificate(ctx).checkHost(expected) !== undefined
      },
    },
    revocation: { enabled: true },
  },
  scopes: ['orders.read'],
  ttl: { ClientCredentials: lifetime },
})

const callback = provider.callback()
function answer(req, res) {
  res.setHeader('Date', new Date(Date.now()).toUTCString()) // Node's own is of its own clock
  callback(req, res)
}

const server = config.tls
  ? createSecureServer({ ...config.tls, requestCert: true, rejectUnauthorized: Boolean(config.required) }, answer)
  : createServer(answer)
server.listen(port, '127.0.0.1')
await once(server, 'listening')
console.log('listening')
