// An authorization server for the client "gateway", whose secret is in the
// environment variable CLIENT_SECRET: the client credentials grant, revocation
// and introspection of oidc-provider, with tokens of the lifetime given. It
// prints a line once it listens, and ends with its standard input. What it has
// issued it forgets when it ends; the client is configured, and so is not.
//
// Usage: node server.mjs <port> <lifetime in seconds>

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { Provider } from 'oidc-provider'

const [port, lifetime, ...rest] = process.argv.slice(2).map(Number)
assert(port && lifetime && rest.length === 0, 'usage: node server.mjs <port> <lifetime in seconds>')

process.stdin.on('end', () => process.exit()).resume()

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'gateway',
    client_secret: process.env.CLIENT_SECRET,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
  }],
  // no keys, which it would warn about: tokens are opaque, and nobody logs in
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true },
    revocation: { enabled: true },
  },
  scopes: ['orders.read'],
  ttl: { ClientCredentials: lifetime },
})

const server = createServer(provider.callback())
server.listen(port, '127.0.0.1')
await once(server, 'listening')
console.log('listening')
