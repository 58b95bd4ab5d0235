// Calls of an MCP client, by the official SDK as it is, which knows nothing of
// the token that the server wants: it has the key of a caller of the gateway, in
// the environment variable KEY, if that is set. With the caller's name in CLIENT_ID
// it looks for an authorization server and exchanges the key for a token there; else
// it sends the key. Prints a line for each.
//
// Usage: node client.mjs <url>

import assert from 'node:assert/strict'
import { setTimeout } from 'node:timers/promises'
import { ClientCredentialsProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { LoggingMessageNotificationSchema } from '@modelcontextprotocol/sdk/types.js'

const [url, ...rest] = process.argv.slice(2)
assert(url && rest.length === 0, 'usage: node client.mjs <url>')
const { KEY: key, CLIENT_ID: clientId } = process.env
const options = {}
if (clientId) {
  options.authProvider = new ClientCredentialsProvider({ clientId, clientSecret: key, expectedIssuer: new URL(url).origin })
} else if (key) {
  options.requestInit = { headers: { Authorization: `Bearer ${key}` } }
}

const client = new Client({ name: 'test', version: '1.0.0' })
const transport = new StreamableHTTPClientTransport(new URL(url), options)
const told = new Set()
client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => told.add(params.data))

// announce calls the tool of that name until both of its notifications have
// come: the stream of a session opens some time after the session.
async function announce(text) {
  told.clear()
  for (;;) {
    await client.callTool({ name: 'announce', arguments: { text } })
    if (told.size === 2) break
    await setTimeout(20)
  }
  console.log('told:', [...told].sort().join(', '))
}

async function add(a, b) {
  const { content } = await client.callTool({ name: 'add', arguments: { a, b } })
  console.log('add:', content[0].text)
}

try {
  await client.connect(transport)
  console.log('connected to', client.getServerVersion().name, transport.sessionId ? 'in a session' : 'without a session')
  const { tools } = await client.listTools()
  console.log('tools:', tools.map(tool => tool.name).join(' '))
  await add(2, 3)
  await announce('hello')
  await client.callTool({ name: 'revoke' })
  await add(3, 4)
  await announce('hello again')
  await transport.terminateSession()
  console.log('session ended')
} catch (err) {
  console.log(`error: ${err.code ?? ''} ${err.message}`)
  process.exitCode = 1
} finally {
  await client.close()
}
