// Calls the Voucherify API at the given URL by its official SDK, as an
// application that holds no credential, or the name and the key of a caller of the
// gateway, and prints a line of JSON for each call: what it brought, or the error
// that the SDK made of the answer. Any other error ends it.
//
// Usage: node calls.mjs <apiUrl> [<name> <key>]

import assert from 'node:assert/strict'
import sdk from '@voucherify/sdk' // CommonJS, whose names Node cannot see

const { VoucherifyServerSide } = sdk

const [apiUrl, name, key, ...rest] = process.argv.slice(2)
assert(apiUrl && rest.length === 0, 'usage: node calls.mjs <apiUrl> [<name> <key>]')

const client = VoucherifyServerSide({
  applicationId: name ?? 'dummy-app-id', // the SDK insists on both
  secretKey: key ?? 'dummy-app-token',
  apiUrl,
  timeoutMs: 15_000,
})

const cart = id => ({ redeemables: [{ object: 'voucher', id }], order: { amount: 5500 } })

const calls = {
  'list': async () => {
    const { object, total, vouchers } = await client.vouchers.list({ limit: 2 })
    return { object, total, codes: vouchers.map(v => v.code), rateLimit: client.apiLimitsHandler.getRateLimit() }
  },
  'get': async () => {
    const { object, code, discount } = await client.vouchers.get('BLCKFRDY')
    return { object, code, amountOff: discount.amount_off }
  },
  'get with an escaped code': async () => {
    const { object, code, discount } = await client.vouchers.get('a/b c')
    return { object, code, percentOff: discount.percent_off }
  },
  'validate': async () => {
    const { valid, order } = await client.validations.validateStackable(cart('BLCKFRDY'))
    return { valid, discount: order.total_discount_amount }
  },
  'validate one': async () => {
    const { valid, code, order } = await client.validations.validateVoucher('a/b c', { order: { amount: 5500 } })
    return { valid, code, discount: order.total_discount_amount }
  },
  'redeem': async () => {
    const { redemptions, order } = await client.redemptions.redeemStackable(cart('BLCKFRDY'))
    return { results: redemptions.map(r => r.result), discount: order.total_discount_amount }
  },
  'redeem one': async () => {
    const { result, voucher } = await client.redemptions.redeem('a/b c', { order: { amount: 5500 } })
    return { result, code: voucher.code, redeemed: voucher.redemption.redeemed_quantity }
  },
  'get what is not there': () => client.vouchers.get('MISSING'),
}

// The SDK does not export its error class and minifies the name, so it is
// known by its place below Error and by the fields that it declares.
function isOfTheSDK(error) {
  return error instanceof Error &&
    Object.getPrototypeOf(Object.getPrototypeOf(error)) === Error.prototype &&
    ['code', 'key', 'details', 'request_id', 'resource_id', 'resource_type'].every(name => Object.hasOwn(error, name))
}

for (const [call, make] of Object.entries(calls)) {
  const line = { call }
  try {
    line.result = await make()
  } catch (error) {
    if (!isOfTheSDK(error)) {
      console.error(`${call}: ${error?.stack ?? error}`) // all of an AxiosError is hundreds of lines
      process.exit(1)
    }
    const { code, key, message, resource_id, resource_type } = error
    line.error = { code, key, message, resource_id, resource_type }
  }
  console.log(JSON.stringify(line))
}
