// An MCP server over Streamable HTTP at /mcp that wants an access token, and its
// authorization server at /token: the client credentials grant for the client
// "gateway", whose secret is in the environment variable CLIENT_SECRET.
//
// It prints a line for each request at /mcp, and ends with its standard input.
//
// Usage: node server.mjs <port>

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js'
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js'
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { isInitializeRequest } from '@modelcontextprotocol/sdk/types.js'
import express from 'express'
import { z } from 'zod'

const [port, ...rest] = process.argv.slice(2).map(Number)
assert(port && rest.length === 0, 'usage: node server.mjs <port>')
assert(process.env.CLIENT_SECRET, 'CLIENT_SECRET is not set')

const resource = `http://127.0.0.1:${port}/mcp`
const tokens = new Map() // what is known of each that lives
const sessions = new Map() // the transport of each that is open

const app = createMcpExpressApp() // refuses names in Host that are not this machine's

app.post('/token', express.urlencoded(), (req, res) => {
  const client = 'Basic ' + Buffer.from(`gateway:${encodeURIComponent(process.env.CLIENT_SECRET)}`).toString('base64')
  if (req.headers.authorization !== client) {
    return res.status(401).json({ error: 'invalid_client' })
  }
  if (req.body.grant_type !== 'client_credentials' || req.body.resource !== resource) {
    return res.status(400).json({ error: 'invalid_request' })
  }
  const token = randomUUID()
  tokens.set(token, { clientId: 'gateway', scopes: ['tools'], expiresAt: Date.now() / 1000 + 3600, resource: new URL(resource) })
  res.set('Cache-Control', 'no-store').json({ access_token: token, token_type: 'Bearer', expires_in: 3600, scope: 'tools' })
})

const verifier = {
  async verifyAccessToken(token) {
    if (!tokens.has(token)) throw new InvalidTokenError('unknown token')
    return tokens.get(token)
  },
}
app.use('/mcp', (req, res, next) => {
  const { authorization, ...headers } = req.headers
  res.on('finish', () => console.log(JSON.stringify({ method: req.method, call: req.body?.method, status: res.statusCode, headers })))
  next()
}, requireBearerAuth({ verifier, requiredScopes: ['tools'], expectedResource: resource }))

app.all('/mcp', async (req, res) => {
  let transport = sessions.get(req.headers['mcp-session-id'])
  if (!transport && isInitializeRequest(req.body)) {
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: id => sessions.set(id, transport),
      onsessionclosed: id => sessions.delete(id),
    })
    await newServer().connect(transport)
  }
  if (!transport) {
    return res.status(404).json({ jsonrpc: '2.0', error: { code: -32001, message: 'Session not found' }, id: null })
  }
  await transport.handleRequest(req, res, req.body)
})

function newServer() {
  const server = new McpServer({ name: 'test', version: '1.0.0' }, { capabilities: { logging: {} } })
  server.registerTool('add', { description: 'Adds two numbers', inputSchema: { a: z.number(), b: z.number() } },
    ({ a, b }) => ({ content: [{ type: 'text', text: String(a + b) }] }))

  // one notification in the answer of the call, and one in the stream of the session
  server.registerTool('announce', { description: 'Says what it is told', inputSchema: { text: z.string() } },
    async ({ text }, { sendNotification }) => {
      await sendNotification({ method: 'notifications/message', params: { level: 'info', data: `${text} in the answer` } })
      await server.sendLoggingMessage({ level: 'info', data: `${text} in the stream` })
      return { content: [{ type: 'text', text: 'done' }] }
    })
  server.registerTool('revoke', { description: 'Ends all tokens, as their revocation would' },
    () => {
      tokens.clear()
      return { content: [{ type: 'text', text: 'done' }] }
    })
  return server
}

process.stdin.on('end', () => process.exit()).resume()
app.listen(port, '127.0.0.1', () => console.log('listening'))
