package sandbox

import (
	"fmt"
	"net/http/httptest"
	"slices"
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
		{v2: "vouchers.publish customers.details.read areas.manage", ok: true},
		{v2: "anything", ok: true},
		{v2: "vouchers.read,campaigns.read"},
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
	all := s.company.Scopes
	if len(all) != 42 || !slices.IsSorted(all) {
		t.Errorf("%d scopes, want 42: %v", len(all), all)
	}
}

func TestVoucherifyV2(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := granted(t, s, voucherifyRequestV2("proj_1", "vouchers.read"))
	wantStatus(t, send(s, "GET", "/v1/vouchers", value, ""), 200)
	wantStatus(t, send(s, "GET", "/v1/campaigns", value, ""), 403)
	wantStatus(t, send(s, "GET", "/v1/vouchers", voucherifyGrantV1(t, s, "campaigns"), ""), 403)

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
		{"GET", "/v1/vouchers", api, "", nil, 200, `{"object":"list","data_ref":"vouchers","vouchers":[{`},
		{"GET", "/v1/vouchers", vouchers, "", nil, 200, `"total":3}`},
		{"GET", "/v1/vouchers?limit=1&page=2&[created_at][before]=2030-01-01", api, "", nil, 200, `"code":"BLCKFRDY"`},
		{"GET", "/v1/vouchers?limit=1&page=9", api, "", nil, 200, `"vouchers":[],"total":3}`},
		{"GET", "/v1/vouchers?limit=x", api, "", nil, 400, `"key":"invalid_payload"`},
		{"GET", "/v1/vouchers?page=0", api, "", nil, 400, `"key":"invalid_payload"`},
		{"GET", "/v1/vouchers/GIFT-CARD-xwc6X7Tk", api, "", nil, 200, `"gift":{"amount":55000,"balance":44700,"effect":"APPLY_TO_ORDER"}`},
		{"GET", "/v1/vouchers/a%2Fb%20c", api, "", nil, 200, `"code":"a/b c"`},
		{"GET", "/v1/vouchers/a/b%20c", api, "", nil, 404, `"key":"not_found"`},
		{"GET", "/v1/vouchers/v_kD4GpRs9Bw2XnMa6JtQe8ZyH", api, "", nil, 200, `"code":"BLCKFRDY"`},
		{"GET", "/v1/vouchers/NOPE", api, "", nil, 404, `{"code":404,"key":"not_found","message":"Resource not found","details":"Cannot find voucher with id NOPE","request_id":"v-`},
		{"GET", "/v1/vouchers/NOPE", api, "", nil, 404, `"resource_id":"NOPE","resource_type":"voucher"}`},
		{"DELETE", "/v1/vouchers", api, "", nil, 405, `{"code":405,"key":"method_not_allowed"`},
		{"POST", "/v1/vouchers/importCSV", vouchers, "file", nil, 202, `{"async_action_id":"aa_`},
		{"GET", "/v1/campaigns/Gift%20Cards", api, "", nil, 200, `"object":"campaign"`},
		{"GET", "/v1/campaigns", vouchers, "", nil, 403, `{"code":403,"message":"Missing permission","details":"User does not have a required permission to perform this operation.","key":"missing_required_permission"}`},
		{"GET", "/v1/customers", api, "", nil, 200, `"data_ref":"customers"`},
		{"GET", "/v1/customers/ada@example.com", api, "", nil, 200, `"object":"customer"`},
		{"GET", "/v1/customers/nobody", api, "", nil, 404, `"resource_type":"customer"`},
		{"GET", "/v1/products/kayak-tour", api, "", nil, 200, `"object":"product"`},
		{"GET", "/v1/orders", api, "", nil, 200, `"data_ref":"orders"`},
		{"POST", "/v1/campaigns/NOPE/importCSV", api, "", nil, 404, `"resource_type":"campaign"`},
		{"POST", "/v1/vouchers/GIFT-CARD-xwc6X7Tk/balance", api, `{"amount":10000}`, nil, 200,
			`{"amount":10000,"total":65000,"balance":54700,"type":"gift_voucher","object":"balance","operation_type":"MANUAL","related_object":{"type":"voucher","id":"v_`},
		{"POST", "/v1/vouchers/GIFT-CARD-xwc6X7Tk/balance", api, "", nil, 400, `"key":"invalid_payload"`},
		{"POST", "/v1/vouchers/NOPE/balance", api, `{"amount":1}`, nil, 404, `"resource_type":"voucher"`},
		{"POST", "/v1/validations", api, order, nil, 200, `"discount_amount":1000`},
		{"POST", "/v1/validations", api, `{}`, nil, 400, `"key":"invalid_payload"`},
		{"POST", "/v1/validations", api, "", nil, 400, `"key":"invalid_payload"`},
		{"POST", "/v1/validations", vouchers, order, nil, 403, "missing_required_permission"},
		{"POST", "/v1/vouchers/a%2Fb%20c/validate", api, `{"order":{"amount":5500}}`, nil, 200, `"code":"a/b c"`},
		{"POST", "/v1/vouchers/NOPE/validate", api, "", nil, 404, `"resource_type":"voucher"`},
		{"POST", "/v1/vouchers/BLCKFRDY/redemption", api, "", nil, 200, `"result":"SUCCESS"`},
		{"POST", "/v1/redemptions", api, order, nil, 200, `"redemptions":[{`},
		{"POST", "/v1/redemptions", api, `{"redeemables":[]}`, nil, 400, `"key":"invalid_payload"`},
		{"POST", "/v1/redemptions", api, `{"redeemables":[{"object":"voucher","id":"NOPE"}]}`, nil, 404, `"key":"not_found"`},
		{"GET", "/v1/redemptions", api, "", nil, 200, `"data_ref":"redemptions"`},
		{"GET", "/v1/publications", api, "", nil, 200, `"data_ref":"publications"`},
		{"POST", "/v1/publications", api, `{"customer":{"source_id":"ada@example.com"}}`, nil, 200, `"object":"publication"`},
		{"GET", "/v1/publications/create?customer[source_id]=ada@example.com", api, "", nil, 200, `"object":"publication"`},
		{"GET", "/v1/publications/create", vouchers, "", nil, 403, "missing_required_permission"},
		{"GET", "/v1/nothing", api, "", nil, 404, `"key":"not_found"`},
		{"POST", "/management/v1/projects", api, "", nil, 401, `"key":"unauthorized"`},
		{"GET", "/v1/vouchers", "", "", nil, 401, `{"code":401,"message":"Unauthorized","key":"unauthorized"}`},

		{"GET", "/client/v1/vouchers", client, "", origin, 200, `"data_ref":"vouchers"`},
		{"POST", "/client/v1/redemptions", clientAPI, order, origin, 200, `"redemptions":[{`},
		{"POST", "/client/v1/validations", client, order, origin, 403, "missing_required_permission"},
		{"GET", "/client/v1/vouchers", api, "", origin, 403, "missing_required_permission"},
		{"GET", "/client/v1/vouchers", client, "", nil, 400, "Origin"},
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

func TestVoucherifyObjects(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	type object struct {
		ID, Code, Name, Object, Type string
		Active                       bool
		CreatedAt                    string `json:"created_at"`
	}
	got := func(method, path, body string) object {
		t.Helper()
		w := send(s, method, path, value, body)
		wantStatus(t, w, 200)
		return decode[object](t, w)
	}

	made := got("POST", "/v1/vouchers/S%2F1", `{"id":"mine","code":"other","type":"DISCOUNT_VOUCHER"}`)
	if made.Code != "S/1" || !strings.HasPrefix(made.ID, "v_") || made.Object != "voucher" || !made.Active || made.CreatedAt == "" {
		t.Errorf("made %+v", made)
	}
	wantStatus(t, send(s, "POST", "/v1/vouchers/S%2F1", value, `{}`), 409)
	wantStatus(t, send(s, "POST", "/v1/vouchers", value, `{"code":"S/1"}`), 409)
	if w := send(s, "POST", "/v1/validations", value, `{"redeemables":[{"object":"voucher","id":"S/1"}]}`); !strings.Contains(w.Body.String(), `"valid":true`) {
		t.Errorf("not valid: %s", w.Body)
	}
	if v := got("PUT", "/v1/vouchers/S%2F1", `{"id":"mine","type":"GIFT_VOUCHER"}`); v.Type != "GIFT_VOUCHER" || v.ID != made.ID || v.Code != "S/1" {
		t.Errorf("updated to %+v", v)
	}
	got("POST", "/v1/vouchers/S%2F1/disable", "")
	if got("GET", "/v1/vouchers/"+made.ID, "").Active {
		t.Error("still active")
	}
	if !got("POST", "/v1/vouchers/S%2F1/enable", "").Active {
		t.Error("not active again")
	}
	wantBody(t, send(s, "DELETE", "/v1/vouchers/S%2F1", value, ""), 204, "")
	for _, request := range []string{"GET /v1/vouchers/S%2F1", "DELETE /v1/vouchers/S%2F1", "POST /v1/vouchers/S%2F1/enable"} {
		method, path, _ := strings.Cut(request, " ")
		wantStatus(t, send(s, method, path, value, ""), 404)
	}
	wantStatus(t, send(s, "PUT", "/v1/vouchers/S%2F1", value, "{}"), 404)

	if a, b := got("POST", "/v1/vouchers", `{}`), got("POST", "/v1/vouchers", `{}`); a.Code == "" || a.Code == b.Code {
		t.Errorf("random codes %q and %q", a.Code, b.Code)
	}
	if p := got("POST", "/v1/products", `{"name":"Paddle"}`); p.Object != "product" || got("GET", "/v1/products/Paddle", "").ID != p.ID {
		t.Errorf("made %+v", p)
	}
	if o := got("POST", "/v1/orders", `{"source_id":"o1"}`); !strings.HasPrefix(o.ID, "ord_") || got("GET", "/v1/orders/o1", "").ID != o.ID {
		t.Errorf("made %+v", o)
	}
	for _, body := range []string{"", "[]", "null"} {
		wantStatus(t, send(s, "POST", "/v1/vouchers", value, body), 400)
		wantStatus(t, send(s, "PUT", "/v1/vouchers/BLCKFRDY", value, body), 400)
	}
}

// Validations list every redeemable; where one cannot be used, none is.
func TestVoucherifyValidations(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	type validation struct {
		Valid       bool
		Redeemables []struct {
			Status, ID, Object string
			Result             struct {
				Error struct {
					Code int
					Key  string
				}
			}
		}
		StackingRules map[string]any `json:"stacking_rules"`
	}
	for _, tc := range []struct {
		ids   []string
		valid bool
		want  string
	}{
		{[]string{"BLCKFRDY", "GIFT-CARD-xwc6X7Tk"}, true, "BLCKFRDY APPLICABLE 0, GIFT-CARD-xwc6X7Tk APPLICABLE 0"},
		{[]string{"BLCKFRDY", "N\"OPE", "a/b c"}, false, "BLCKFRDY SKIPPED 0, N\"OPE INAPPLICABLE 404, a/b c SKIPPED 0"},
	} {
		var sent []string
		for _, id := range tc.ids {
			sent = append(sent, fmt.Sprintf(`{"object":"voucher","id":%q}`, id))
		}
		v := decode[validation](t, send(s, "POST", "/v1/validations", value, `{"redeemables":[`+strings.Join(sent, ",")+`]}`))
		var got []string
		for _, r := range v.Redeemables {
			got = append(got, fmt.Sprintf("%s %s %d", r.ID, r.Status, r.Result.Error.Code))
		}
		if text := strings.Join(got, ", "); text != tc.want || v.Valid != tc.valid || v.StackingRules == nil {
			t.Errorf("%s, valid=%v, stacking_rules %v; want %s", text, v.Valid, v.StackingRules, tc.want)
		}
	}
	redeemed := decode[struct {
		Redemptions []struct {
			Result  string
			Voucher struct{ Code string }
		}
	}](t, send(s, "POST", "/v1/redemptions", value, `{"redeemables":[{"id":"BLCKFRDY"},{"id":"a/b c"}]}`))
	if text := fmt.Sprint(redeemed.Redemptions); text != "[{SUCCESS {BLCKFRDY}} {SUCCESS {a/b c}}]" {
		t.Errorf("redeemed %s", text)
	}
}
