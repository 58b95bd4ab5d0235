// Node.js as e2e/differential_test.go runs it: servers that read the target of a
// request in the ways that are common, and say which operation they take it for.
// It prints the port of each, as JSON in one line.
import http from 'node:http'
import path from 'node:path'
import url from 'node:url'

const base = 'http://api.test'
const cut = (target) => target.split('?')[0]

const readings = {
  'url': (target) => new URL(target, base).pathname,
  'url then decode': (target) => decodeURIComponent(new URL(target, base).pathname),
  'decode then url': (target) => new URL(decodeURIComponent(target), base).pathname,
  'decode then url then decode': (target) => decodeURIComponent(new URL(decodeURIComponent(target), base).pathname),
  'decode twice then url': (target) => new URL(decodeURIComponent(decodeURIComponent(target)), base).pathname,
  'decode then parse': (target) => url.parse(decodeURIComponent(target)).pathname,
  'parse then decode': (target) => decodeURIComponent(url.parse(target).pathname),
  'normalize': (target) => path.posix.normalize(decodeURIComponent(cut(target))),
  'normalize as Windows': (target) => path.win32.normalize(decodeURIComponent(cut(target))).replaceAll('\\', '/'),
  'unescape and compose': (target) => path.posix.normalize(unescape(decodeURIComponent(cut(target))).normalize('NFKC')),
  'segments': (target) => new URL(target, base).pathname.split('/').map((s) => encodeURIComponent(decodeURIComponent(s))).join('/'),
}

const operations = [
  ['vouchers', /^\/v1\/vouchers\/?$/],
  ['voucher', /^\/v1\/vouchers\/[^/]+\/?$/],
  ['validate', /^\/v1\/vouchers\/[^/]+\/validate\/?$/],
  ['redemption', /^\/v1\/vouchers\/[^/]+\/redemption\/?$/],
  ['below-voucher', /^\/v1\/vouchers\//],
  ['campaigns', /^\/v1\/campaigns$/],
  ['campaign', /^\/v1\/campaigns\//],
  ['revoke', /^\/v1\/oauth\/revoke(\/|$)/],
]

const ports = {}
for (const [name, read] of Object.entries(readings)) {
  const server = http.createServer({ keepAliveTimeout: 60_000 }, (req, res) => {
    req.resume()
    let pathname
    try {
      pathname = read(req.url)
    } catch {
      res.writeHead(400).end()
      return
    }
    const [operation] = operations.find(([, pattern]) => pattern.test(pathname)) ?? []
    if (operation) {
      res.setHeader('X-Operation', operation)
    }
    res.writeHead(operation ? 200 : 404).end(pathname)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  ports[name] = server.address().port
}
console.log(JSON.stringify(ports))
process.stdin.on('end', () => process.exit()).resume()
