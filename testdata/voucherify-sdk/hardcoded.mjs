// Gets a voucher by the official SDK, which has the API's host built in, and prints
// its code.
//
// Usage: KEY=<secret> node hardcoded.mjs

import sdk from '@voucherify/sdk' // CommonJS, whose names Node cannot see

const client = sdk.VoucherifyServerSide({ applicationId: 'web-shop', secretKey: process.env.KEY, timeoutMs: 15_000 })
console.log(200, (await client.vouchers.get('BLCKFRDY')).code)
