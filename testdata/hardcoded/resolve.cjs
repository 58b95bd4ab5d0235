// Stands for the hosts file of a container: has every connection of Node.js to
// port 443 go to the gateway instead, whose address is in GATEWAY. The program that
// connects does not notice. For `node --require`.

const { Socket } = require('node:net')

const [host, port] = process.env.GATEWAY.split(':')
const connect = Socket.prototype.connect

Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0] // net.connect has normalized them
  if (Number(options.port) === 443) {
    Object.assign(options, { host, port, lookup: undefined, autoSelectFamily: false })
  }
  return connect.apply(this, args)
}
