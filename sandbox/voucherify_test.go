package sandbox

import (
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestVoucherifyTokenIsAsLongAsTheRealOne(t *testing.T) {
	value := voucherifyGrantV1(t, newServerFor(t, apiVoucherify), "api")
	if len(value) != 50 || strings.ContainsFunc(value, func(r rune) bool {
		return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", r)
	}) {
		t.Errorf("%d characters, or others than letters and digits", len(value))
	}
}

func TestVoucherifyScopes(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	for _, tc := range []struct {
		v1, v2 string
		ok     bool
	}{
		{v1: "api", ok: true},
		{v1: "vouchers validations client_api", ok: true},
		{v1: "vouchers nothing"},
		{v1: "vouchers.read"},
		{v1: ""},
		{v2: "vouchers.read campaigns.write", ok: true},
		{v2: "vouchers"},
		{v2: "api.read"},
		{v2: "vouchers.delete"},
	} {
		r, scope := voucherifyRequestV1(tc.v1), tc.v1
		if tc.v2 != "" {
			r, scope = voucherifyRequestV2("proj_1", tc.v2), tc.v2
		}
		w := serve(s, r)
		if !tc.ok {
			wantBody(t, w, 400, `{"code":400,"key":"invalid_scope","message":"Invalid scope: `+scope+`"}`)
			continue
		}
		wantStatus(t, w, 200)
		if g := decode[voucherifyGrant](t, w); g.Scope != scope {
			t.Errorf("granted %q, want %q", g.Scope, scope)
		}
	}
	if len(voucherifySegments)+len([]string{"api", "client_api"}) != 42 {
		t.Errorf("%d segments", len(voucherifySegments))
	}
}

func TestVoucherifyV2(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := granted(t, s, voucherifyRequestV2("proj_1", "vouchers.read"))
	wantStatus(t, send(s, "GET", "/v1/vouchers", value, ""), 200)
	wantStatus(t, send(s, "POST", "/v1/vouchers/BLCKFRDY/validate", value, ""), 403)
	wantStatus(t, send(s, "GET", "/v1/campaigns", value, ""), 403)

	wantBody(t, serve(s, voucherifyRequestV2("", "vouchers.read")), 400,
		`{"code":400,"key":"missing_parameters","message":"Missing parameters"}`)
	r := voucherifyRequestV2("proj_1", "vouchers.read")
	r.SetBasicAuth("sandbox", "wrong")
	wantBody(t, serve(s, r), 401, `{"code":401,"message":"Unauthorized","key":"unauthorized"}`)
	r = voucherifyRequestV1("api")
	r.Header = voucherifyRequestV2("proj_1", "api").Header // v1 takes no Basic
	wantStatus(t, serve(s, r), 401)
}

func TestVoucherifyTokenLimit(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	var value string
	for range 1000 {
		value = voucherifyGrantV1(t, s, "api")
	}
	wantBody(t, serve(s, voucherifyRequestV1("api")), 400, `{"code":400,"key":"too_many_tokens","message":"Too many tokens"}`)
	wantStatus(t, serve(s, voucherifyRequestV2("proj_1", "vouchers.read")), 200) // a project of its own
	s.state.tokens.revoke(value)
	wantStatus(t, serve(s, voucherifyRequestV1("api")), 200)
}

func TestVoucherifyOperations(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	api := voucherifyGrantV1(t, s, "api")
	vouchers := voucherifyGrantV1(t, s, "vouchers")
	client := voucherifyGrantV1(t, s, "client_vouchers")
	clientAPI := voucherifyGrantV1(t, s, "client_api")
	origin := []string{"Origin", "https://shop.example"}
	const order = `{"redeemables":[{"object":"voucher","id":"BLCKFRDY"}],"order":{"amount":5500}}`
	for _, tc := range []struct {
		method, path, token, body string
		headers                   []string
		status                    int
		contains                  string
	}{
		{"GET", "/v1/vouchers", api, "", nil, 200, `{"object":"list","data_ref":"vouchers","vouchers":[{"id":"v_`},
		{"GET", "/v1/vouchers", vouchers, "", nil, 200, `"total":3}`},
		{"GET", "/v1/vouchers?limit=1&page=2&[created_at][before]=2030-01-01", api, "", nil, 200, `"code":"BLCKFRDY"`},
		{"GET", "/v1/vouchers?limit=1&page=9", api, "", nil, 200, `"vouchers":[],"total":3}`},
		{"GET", "/v1/vouchers?limit=x", api, "", nil, 400, `"key":"invalid_payload"`},
		{"GET", "/v1/vouchers/GIFT-CARD-xwc6X7Tk", api, "", nil, 200, `"gift":{"amount":55000,"balance":44700,"effect":"APPLY_TO_ORDER"}`},
		{"GET", "/v1/vouchers/a%2Fb%20c", api, "", nil, 200, `"code":"a/b c"`},
		{"GET", "/v1/vouchers/a/b%20c", api, "", nil, 404, `"key":"not_found"`},
		{"GET", "/v1/vouchers/v_kD4GpRs9Bw2XnMa6JtQe8ZyH", api, "", nil, 200, `"code":"BLCKFRDY"`},
		{"GET", "/v1/vouchers/NOPE", api, "", nil, 404, `{"code":404,"key":"not_found","message":"Resource not found","details":"Cannot find voucher with id NOPE","request_id":"v-`},
		{"GET", "/v1/vouchers/NOPE", api, "", nil, 404, `"resource_id":"NOPE","resource_type":"voucher"}`},
		{"DELETE", "/v1/vouchers", api, "", nil, 405, `{"code":405,"key":"method_not_allowed"`},
		{"GET", "/v1/campaigns/Gift%20Cards", api, "", nil, 200, `"object":"campaign"`},
		{"GET", "/v1/campaigns", vouchers, "", nil, 403, `{"code":403,"key":"missing_required_permission"`},
		{"GET", "/v1/customers", api, "", nil, 200, `"data_ref":"customers"`},
		{"GET", "/v1/customers/ada@example.com", api, "", nil, 200, `"object":"customer"`},
		{"GET", "/v1/customers/nobody", api, "", nil, 404, `"resource_type":"customer"`},
		{"POST", "/v1/campaigns/NOPE/importCSV", api, "", nil, 404, `"resource_type":"campaign"`},
		{"POST", "/v1/validations", api, order, nil, 200, `"discount_amount":1000`},
		{"POST", "/v1/validations", api, `{"redeemables":[{"object":"voucher","id":"NOPE"}]}`, nil, 200, `{"valid":false,`},
		{"POST", "/v1/validations", api, `{}`, nil, 400, `"key":"invalid_payload"`},
		{"POST", "/v1/validations", vouchers, order, nil, 403, "missing_required_permission"},
		{"POST", "/v1/vouchers/a%2Fb%20c/validate", api, `{"order":{"amount":2000}}`, nil, 200, `"discount_amount":200,`},
		{"POST", "/v1/vouchers/NOPE/validate", api, "", nil, 404, `"resource_type":"voucher"`},
		{"POST", "/v1/vouchers/BLCKFRDY/redemption", api, "", nil, 200, `"result":"SUCCESS"`},
		{"POST", "/v1/redemptions", api, `{"redeemables":[{"object":"voucher","id":"NOPE"}]}`, nil, 404, `"key":"not_found"`},
		{"GET", "/v1/nothing", api, "", nil, 404, `"key":"not_found"`},
		{"POST", "/management/v1/projects", api, "", nil, 401, `"key":"unauthorized"`},
		{"GET", "/v1/vouchers", "", "", nil, 401, `{"code":401,"key":"unauthorized","message":"Unauthorized","request_id":"v-`},

		{"GET", "/client/v1/vouchers", client, "", origin, 200, `"data_ref":"vouchers"`},
		{"POST", "/client/v1/redemptions", clientAPI, order, origin, 200, `"redemptions":[{`},
		{"POST", "/client/v1/validations", client, order, origin, 403, "missing_required_permission"},
		{"GET", "/client/v1/vouchers", api, "", origin, 403, "missing_required_permission"},
		{"GET", "/client/v1/vouchers", client, "", nil, 403, `"key":"forbidden"`},
		{"GET", "/v1/vouchers", clientAPI, "", origin, 403, "missing_required_permission"},
	} {
		w := send(s, tc.method, tc.path, tc.token, tc.body, tc.headers...)
		wantStatus(t, w, tc.status)
		if !strings.Contains(w.Body.String(), tc.contains) {
			t.Errorf("%s %s: no %s in\n%s", tc.method, tc.path, tc.contains, w.Body)
		}
		if w.Header().Get("X-Rate-Limit-Limit") == "" || w.Header().Get("X-Rate-Limit-Remaining") == "" {
			t.Errorf("%s %s: headers %v", tc.method, tc.path, w.Header())
		}
		if reset, err := strconv.ParseInt(w.Header().Get("X-Rate-Limit-Retry"), 10, 64); err != nil || reset < time.Now().Unix() {
			t.Errorf("%s %s: X-Rate-Limit-Retry %d, %v", tc.method, tc.path, reset, err)
		}
	}
}

func TestVoucherifyTooLarge(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	r := httptest.NewRequest("POST", "/v1/validations", strings.NewReader(strings.Repeat(" ", maxBody+1)))
	r.Header.Set("Authorization", "Bearer "+voucherifyGrantV1(t, s, "api"))
	wantBody(t, serve(s, r), 413, `{"statusCode":413,"error":"Request Entity Too Large","message":"Payload content length greater than maximum allowed: 10485760"}`)
}

func TestVoucherifyBalanceIsNotIdempotent(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	const path = "/v1/vouchers/GIFT-CARD-xwc6X7Tk/balance"
	const related = `"type":"gift_voucher","object":"balance","related_object":{"type":"voucher","id":"v_hS8JqWm3Tz5LkRb7NxYc2VdF"}}`
	wantBody(t, send(s, "POST", path, value, `{"amount":10000}`), 200, `{"amount":10000,"total":65000,"balance":54700,`+related)
	wantBody(t, send(s, "POST", path, value, `{"amount":10000}`), 200, `{"amount":10000,"total":75000,"balance":64700,`+related)
	if w := send(s, "GET", "/v1/vouchers/GIFT-CARD-xwc6X7Tk", value, ""); !strings.Contains(w.Body.String(), `"balance":64700`) {
		t.Errorf("%s", w.Body)
	}
	for _, body := range []string{"", "{}", `{"amount":"1"}`, `{"amount":-64701}`} {
		wantStatus(t, send(s, "POST", path, value, body), 400)
	}
	wantStatus(t, send(s, "POST", "/v1/vouchers/BLCKFRDY/balance", value, `{"amount":1}`), 400)
	wantStatus(t, send(s, "POST", "/v1/vouchers/NOPE/balance", value, `{"amount":1}`), 404)
}

func TestVoucherifyRedemptions(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	const both = `{"redeemables":[{"object":"voucher","id":"BLCKFRDY"},{"object":"voucher","id":"GIFT-CARD-xwc6X7Tk"}],"order":{"amount":5500}}`
	type answer struct {
		Redemptions []struct {
			Amount  int64   `json:"amount"`
			Voucher voucher `json:"voucher"`
		} `json:"redemptions"`
		Order order `json:"order"`
	}

	// A validation changes nothing, and neither does a redemption that fails.
	wantStatus(t, send(s, "POST", "/v1/validations", value, both), 200)
	wantStatus(t, send(s, "POST", "/v1/redemptions", value, strings.Replace(both, "GIFT-CARD-xwc6X7Tk", "NOPE", 1)), 404)
	wantStatus(t, send(s, "POST", "/v1/redemptions", value, `{"redeemables":[]}`), 400)

	got := decode[answer](t, send(s, "POST", "/v1/redemptions", value, both))
	if got.Order != newOrder(5500, 5500) || got.Redemptions[0].Amount != 1000 || got.Redemptions[1].Amount != 4500 {
		t.Errorf("%+v", got)
	}
	if g := got.Redemptions[1].Voucher.Gift; g.Balance != 44700-4500 || g.Amount != 55000 {
		t.Errorf("%+v", g)
	}
	if n := got.Redemptions[0].Voucher.Redemption.Redeemed; n != 1 {
		t.Errorf("redeemed %d times", n)
	}
	// Each redemption is listed with the voucher as it was then.
	wantStatus(t, send(s, "POST", "/v1/redemptions", value, both), 200)
	listed := send(s, "GET", "/v1/redemptions", value, "").Body.String()
	for _, want := range []string{`"total":4}`, `"balance":40200,`, `"balance":35700,`} {
		if !strings.Contains(listed, want) {
			t.Errorf("no %s in %s", want, listed)
		}
	}
}
